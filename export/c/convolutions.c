/* ---- what layers are told ---- */

/* Where the channels of a value lie. Rows follow each other in one plane; what lies between the positions of
   one plane and those of the next is zero, so that windows may reach over the edges. With three copies the
   first holds every row shifted right by one, the last shifted left by one. */
typedef struct {
    size_t origin;  /* of the first position of the first channel, in the copy that is not shifted */
    size_t channel; /* floats from one channel to the next */
    size_t copy;    /* floats from one copy to the next */
    int32_t copies; /* 1 or 3 */
    int32_t channels, height, width;
    int32_t row;    /* floats from one row to the next */
    int32_t before; /* zeros before the first position of a plane */
    int32_t after;  /* zeros after the last one that follow it directly */
} NAME_planes;

/* A convolution. What it reads is given by offsets from a position of its output, so that one list of taps
   serves all positions. */
typedef struct {
    const int32_t *offsets;
    const float *weights;
    const uint32_t *starts; /* sparse: of each block's and output channel's taps */
    const float *bias;
    const uint32_t *masks; /* all bits where a position belongs to the image; then for the two shifted copies */
    const NAME_planes *source, *target, *residual;
    size_t origin;       /* in the source, of the position that offsets count from */
    int32_t outputs;     /* channels that it makes */
    int32_t blocks;      /* sparse: blocks of input channels; dense: groups */
    int32_t taps;        /* dense: of one output */
    int32_t positions;   /* of one output plane */
    size_t group;        /* dense: floats from one group's channels to the next's */
    size_t mask_length;
    float low, high;
} NAME_convolution;

/* How a tile of sums ends. */
typedef struct {
    const uint32_t *mask, *mask_right, *mask_left;
    ptrdiff_t copy; /* 0 without shifted copies */
    float low, high;
    int clamped;
} NAME_end;

static inline void NAME_finish(NAME_vec sum, const NAME_end *end, const float *residual, float *out, size_t at)
{
    if (residual)
        sum = NAME_ADD(sum, NAME_LOAD(residual + at));
    if (end->clamped) {
        sum = NAME_MAX(sum, NAME_SET(end->low));
        sum = NAME_MIN(sum, NAME_SET(end->high));
    }
    NAME_STORE(out + at, NAME_MASK(end->mask + at, sum));
    if (end->copy) {
        NAME_STORE(out + at - end->copy + 1, NAME_MASK(end->mask_right + at, sum));
        NAME_STORE(out + at + end->copy - 1, NAME_MASK(end->mask_left + at, sum));
    }
}

SPARSE_KERNELS

DENSE_KERNELS

/* Set to zero what lies around the planes. */
static void NAME_clear(const NAME_planes *p, float *base)
{
    size_t length = (size_t)(p->height - 1) * (size_t)p->row + (size_t)p->width;
    float *plane = base + p->origin;
    int32_t c, k;
    for (c = 0; c < p->channels; c++, plane += p->channel)
        for (k = 0; k < p->copies; k++) {
            float *at = p->copies == 1 ? plane : plane + (size_t)k * p->copy - p->copy;
            memset(at - p->before, 0, (size_t)p->before * sizeof(float));
            memset(at + length, 0, (size_t)p->after * sizeof(float));
            if (p->copies == 3 && k != 1) {
                at[0] = 0.0f;
                at[length - 1] = 0.0f;
            }
        }
    /* The windows of the last plane reach here. */
    memset(base + (size_t)p->channels * p->channel, 0, (size_t)p->before * sizeof(float));
}

static NAME_end NAME_end_of(const NAME_convolution *l)
{
    NAME_end end;
    end.mask = l->masks;
    end.mask_right = l->masks + l->mask_length;
    end.mask_left = l->masks + 2 * l->mask_length;
    end.copy = l->target->copies == 3 ? (ptrdiff_t)l->target->copy : 0;
    end.low = l->low;
    end.high = l->high;
    end.clamped = l->low > -FLT_MAX || l->high < FLT_MAX;
    return end;
}

static void NAME_sparse(const NAME_convolution *l, const float *decoded, const float *source, const float *other, float *target)
{
    const NAME_planes *t = l->target;
    const NAME_end end = NAME_end_of(l);
    const float *all = decoded ? decoded : l->weights;
    const int32_t vectors = (l->positions + NAME_LANES - 1) / NAME_LANES;
    int32_t left = (vectors + NAME_TILE - 1) / NAME_TILE, start = 0;
    float *out = target + t->origin;
    const float *residual = other ? other + l->residual->origin : NULL;
    NAME_clear(t, target);
    for (; left > 0; left--) {
        const int32_t count = (vectors - start + left - 1) / left;
        const NAME_taps_function sums = NAME_taps(count);
        const size_t at = (size_t)start * NAME_LANES;
        const uint32_t *starts = l->starts;
        int32_t b, o;
        for (b = 0; b < l->blocks; b++)
            for (o = 0; o < l->outputs; o++, starts++) {
                float *plane = out + (size_t)o * t->channel;
                const float *r = residual ? residual + (size_t)o * l->residual->channel : NULL;
                sums(source + l->origin + at, l->offsets + starts[0], all + starts[0],
                     (int32_t)(starts[1] - starts[0]), l->bias[o], b > 0, b + 1 < l->blocks ? NULL : &end, r, plane,
                     at);
            }
        start += count;
    }
}

static void NAME_dense(const NAME_convolution *l, const float *decoded, const float *source, const float *other, float *target)
{
    const NAME_planes *t = l->target;
    const NAME_end end = NAME_end_of(l);
    const float *all = decoded ? decoded : l->weights;
    const int32_t vectors = (l->positions + NAME_LANES - 1) / NAME_LANES;
    const int32_t each = l->outputs / l->blocks;
    int32_t left = (vectors + NAME_TILE / 4 - 1) / (NAME_TILE / 4), start = 0;
    float *out = target + t->origin;
    const float *residual = other ? other + l->residual->origin : NULL;
    NAME_clear(t, target);
    for (; left > 0; left--) {
        const int32_t count = (vectors - start + left - 1) / left;
        const NAME_rows_function sums = NAME_rows(count);
        const size_t at = (size_t)start * NAME_LANES;
        const float *weights = all;
        int32_t g, o;
        for (g = 0; g < l->blocks; g++)
            for (o = 0; o < each; o += 4, weights += 4 * (size_t)l->taps) {
                const int32_t channel = g * each + o;
                sums(source + l->origin + (size_t)g * l->group + at, l->offsets, weights, l->taps, l->bias + channel,
                     each - o < 4 ? each - o : 4, &end,
                     residual ? residual + (size_t)channel * l->residual->channel : NULL,
                     residual ? l->residual->channel : 0, out + (size_t)channel * t->channel, t->channel, at);
            }
        start += count;
    }
}
