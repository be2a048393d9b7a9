/* Make the shifted copies of planes whose middle copy is there, and the zeros around them. */
static void NAME_spread(const NAME_planes *p, float *base)
{
    int32_t c, y, x;
    NAME_clear(p, base);
    for (c = 0; c < p->channels; c++)
        for (y = 0; y < p->height; y++) {
            float *row = base + p->origin + (size_t)c * p->channel + (size_t)y * (size_t)p->row;
            if (p->copies == 1) {
                for (x = p->width; y + 1 < p->height && x < p->row; x++)
                    row[x] = 0.0f;
                continue;
            }
            for (x = 0; x < p->width; x++) {
                row[(ptrdiff_t)x - (ptrdiff_t)p->copy] = x > 0 ? row[x - 1] : 0.0f;
                row[(size_t)x + p->copy] = x + 1 < p->width ? row[x + 1] : 0.0f;
            }
        }
}

/* Bring an image, channel after channel and row after row, into planes. */
static void NAME_load(const float *image, const float *scale, const float *shift, const NAME_planes *p, float *base)
{
    int32_t c, y, x;
    for (c = 0; c < p->channels; c++)
        for (y = 0; y < p->height; y++) {
            float *row = base + p->origin + (size_t)c * p->channel + (size_t)y * (size_t)p->row;
            for (x = 0; x < p->width; x++, image++)
                row[x] = scale ? *image * scale[c] + shift[c] : *image;
        }
    NAME_spread(p, base);
}

/* Where a gathered plane takes its positions from: row * stride + top, column * stride + left. */
typedef struct {
    int32_t top, left;
} NAME_phase;

/* Gather planes for a convolution whose windows lie apart, or whose source has another row length. */
static void NAME_gather(const NAME_planes *s, const float *source, const NAME_phase *phases, int32_t count,
                        int32_t stride_y, int32_t stride_x, const NAME_planes *p, float *base)
{
    int32_t c, k, y, x;
    NAME_clear(p, base);
    for (c = 0; c < s->channels; c++)
        for (k = 0; k < count; k++)
            for (y = 0; y < p->height; y++) {
                const int32_t from = y * stride_y + phases[k].top;
                const float *in = source + s->origin + (size_t)c * s->channel + (size_t)from * (size_t)s->row;
                float *row = base + p->origin + (size_t)(c * count + k) * p->channel + (size_t)y * (size_t)p->row;
                const int32_t width = y + 1 < p->height ? p->row : p->width;
                if (from >= s->height) {
                    memset(row, 0, (size_t)width * sizeof(float));
                    continue;
                }
                for (x = 0; x < width; x++) {
                    const int32_t column = x * stride_x + phases[k].left;
                    row[x] = column >= 0 && column < s->width && x < p->width ? in[column] : 0.0f;
                }
            }
}

static void NAME_max_pool(const NAME_planes *s, const float *source, int32_t window_y, int32_t window_x,
                          int32_t stride_y, int32_t stride_x, int32_t top, int32_t left, const NAME_planes *p,
                          float *base)
{
    int32_t c, y, x, v, u;
    for (c = 0; c < p->channels; c++)
        for (y = 0; y < p->height; y++)
            for (x = 0; x < p->width; x++) {
                const float *in = source + s->origin + (size_t)c * s->channel;
                const int32_t y0 = y * stride_y - top, x0 = x * stride_x - left;
                const int32_t y1 = y0 + window_y < s->height ? y0 + window_y : s->height;
                const int32_t x1 = x0 + window_x < s->width ? x0 + window_x : s->width;
                float best = -FLT_MAX;
                for (v = y0 < 0 ? 0 : y0; v < y1; v++)
                    for (u = x0 < 0 ? 0 : x0; u < x1; u++) {
                        const float value = in[(size_t)v * (size_t)s->row + (size_t)u];
                        best = value > best ? value : best;
                    }
                base[p->origin + (size_t)c * p->channel + (size_t)y * (size_t)p->row + (size_t)x] = best;
            }
    NAME_spread(p, base);
}

/* The mean of each channel, one after another. */
static void NAME_mean(const NAME_planes *s, const float *source, int32_t step, float *out)
{
    int32_t c, y, x;
    for (c = 0; c < s->channels; c++) {
        const float *in = source + s->origin + (size_t)c * s->channel;
        float sum = 0.0f;
        for (y = 0; y < s->height; y++)
            for (x = 0; x < s->width; x++)
                sum += in[(size_t)y * (size_t)s->row + (size_t)x];
        out[(size_t)c * (size_t)step] = sum / (float)(s->height * s->width);
    }
}

/* Copy a value into channels of another, from the given one on. */
static void NAME_join(const NAME_planes *s, const float *source, int32_t first, const NAME_planes *p, float *base)
{
    int32_t c, y;
    for (c = 0; c < s->channels; c++)
        for (y = 0; y < s->height; y++)
            memcpy(base + p->origin + (size_t)(first + c) * p->channel + (size_t)y * (size_t)p->row,
                   source + s->origin + (size_t)c * s->channel + (size_t)y * (size_t)s->row,
                   (size_t)s->width * sizeof(float));
}

static void NAME_flatten(const NAME_planes *s, const float *source, float *out)
{
    int32_t c, y;
    for (c = 0; c < s->channels; c++)
        for (y = 0; y < s->height; y++, out += s->width)
            memcpy(out, source + s->origin + (size_t)c * s->channel + (size_t)y * (size_t)s->row,
                   (size_t)s->width * sizeof(float));
}

static float NAME_clamp(float value, float low, float high)
{
    value = value > low ? value : low;
    return value < high ? value : high;
}

static void NAME_linear(const float *in, int32_t inputs, const float *weights, const float *bias, int32_t outputs,
                        float low, float high, float *out)
{
    int32_t o, i, k;
    for (o = 0; o < outputs; o++, weights += inputs) {
        float lanes[4 * NAME_LANES], sum = bias[o];
        NAME_vec a = NAME_SET(0.0f), b = a, c = a, d = a;
        for (i = 0; i + 4 * NAME_LANES <= inputs; i += 4 * NAME_LANES) {
            const float *w = weights + i, *x = in + i;
            a = NAME_FMA(NAME_LOAD(w), NAME_LOAD(x), a);
            b = NAME_FMA(NAME_LOAD(w + NAME_LANES), NAME_LOAD(x + NAME_LANES), b);
            c = NAME_FMA(NAME_LOAD(w + 2 * NAME_LANES), NAME_LOAD(x + 2 * NAME_LANES), c);
            d = NAME_FMA(NAME_LOAD(w + 3 * NAME_LANES), NAME_LOAD(x + 3 * NAME_LANES), d);
        }
        NAME_STORE(lanes, NAME_ADD(NAME_ADD(a, b), NAME_ADD(c, d)));
        for (k = 0; k < NAME_LANES; k++)
            sum += lanes[k];
        for (; i < inputs; i++)
            sum += weights[i] * in[i];
        out[o] = NAME_clamp(sum, low, high);
    }
}

static void NAME_sparse_linear(const float *in, const int32_t *offsets, const float *weights, const uint32_t *starts,
                               const float *bias, int32_t outputs, float low, float high, float *out)
{
    int32_t o;
    for (o = 0; o < outputs; o++) {
        float first = bias[o], second = 0.0f, third = 0.0f, fourth = 0.0f;
        uint32_t i = starts[o];
        const uint32_t end = starts[o + 1];
        for (; i + 4 <= end; i += 4) {
            first += weights[i] * in[offsets[i]];
            second += weights[i + 1] * in[offsets[i + 1]];
            third += weights[i + 2] * in[offsets[i + 2]];
            fourth += weights[i + 3] * in[offsets[i + 3]];
        }
        for (; i < end; i++)
            first += weights[i] * in[offsets[i]];
        out[o] = NAME_clamp((first + second) + (third + fourth), low, high);
    }
}

/* Features: clamp(scale * in + shift + other); scale and other may be missing. */
static void NAME_features(const float *in, const float *scale, const float *shift, const float *other, int32_t count,
                          float low, float high, float *out)
{
    int32_t i;
    for (i = 0; i < count; i++) {
        float value = scale ? scale[i] * in[i] + shift[i] : in[i];
        if (other)
            value += other[i];
        out[i] = NAME_clamp(value, low, high);
    }
}

/* Weights in 16 bits: floats of half precision. */
static void NAME_from_half(const uint16_t *codes, size_t count, float *out)
{
    size_t i;
    for (i = 0; i < count; i++) {
        const uint32_t code = codes[i];
        uint32_t bits = (code & 0x7fffu) << 13;
        float value;
        memcpy(&value, &bits, sizeof value);
        value *= 5.192296858534828e33f; /* 2 to the 112: the difference of the exponents' biases */
        memcpy(&bits, &value, sizeof bits);
        bits |= (code & 0x8000u) << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* Weights in 8 bits: whole numbers with a scale for each output. */
static void NAME_from_int8(const int8_t *codes, const uint32_t *starts, int32_t blocks, const float *scales,
                           int32_t outputs, float *out)
{
    int32_t b, o;
    for (b = 0; b < blocks; b++)
        for (o = 0; o < outputs; o++, starts++) {
            uint32_t i;
            for (i = starts[0]; i < starts[1]; i++)
                out[i] = (float)codes[i] * scales[o];
        }
}

/* The same of weights that lie in fours of outputs. */
static void NAME_from_int8_fours(const int8_t *codes, const float *scales, int32_t fours, int32_t taps, float *out)
{
    int32_t f, i, k;
    for (f = 0; f < fours; f++, scales += 4)
        for (i = 0; i < taps; i++)
            for (k = 0; k < 4; k++)
                *out++ = (float)*codes++ * scales[k];
}
