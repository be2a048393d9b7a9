#ifdef NAME_MAIN
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

EXAMPLE
static unsigned char NAME_space[NAME_WORKSPACE_BYTES];

static double NAME_milliseconds(void)
{
#if defined(CLOCK_MONOTONIC)
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
#else
    return 1e3 * (double)clock() / CLOCKS_PER_SEC;
#endif
}

static int NAME_compare(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Without arguments: compare with the example, then time. With a number: time so many runs (at most 1000).
   With "-": read images from the standard input, write logits to the standard output, as raw floats. */
int main(int argc, char **argv)
{
    static float image[NAME_INPUTS], logits[NAME_OUTPUTS];
    static double times[1000];
    double worst = 0.0, largest = 0.0;
    int i, runs = argc > 1 ? atoi(argv[1]) : 50;
    if (argc > 1 && argv[1][0] == '-') {
        while (fread(image, sizeof image, 1, stdin) == 1) {
            NAME_run(image, logits, NAME_space);
            if (fwrite(logits, sizeof logits, 1, stdout) != 1)
                return 2;
        }
        return ferror(stdin) ? 2 : 0;
    }
    NAME_run(NAME_example_image, logits, NAME_space);
    for (i = 0; i < NAME_OUTPUTS; i++) {
        const double expected = (double)NAME_example_logits[i], apart = (double)logits[i] - expected;
        worst = apart > worst ? apart : -apart > worst ? -apart : worst;
        largest = expected > largest ? expected : -expected > largest ? -expected : largest;
    }
    if (!(worst <= 1e-4 * (largest > 0.0 ? largest : 1.0))) {
        printf("FAILED: logits differ by %g; the largest is %g\n", worst, largest);
        return 1;
    }
    runs = runs < 1 ? 1 : runs > 1000 ? 1000 : runs;
    for (i = 0; i < runs; i++) {
        const double begun = NAME_milliseconds();
        NAME_run(NAME_example_image, logits, NAME_space);
        times[i] = NAME_milliseconds() - begun;
    }
    qsort(times, (size_t)runs, sizeof times[0], NAME_compare);
    printf("ok: largest difference %.3g of the largest logit\n", worst / (largest > 0.0 ? largest : 1.0));
    printf("min %.4f ms, median %.4f ms, %d runs, %d floats a vector, %lu bytes of workspace\n", times[0],
           times[runs / 2], runs, NAME_LANES, (unsigned long)NAME_WORKSPACE_BYTES);
    return 0;
}
#endif
