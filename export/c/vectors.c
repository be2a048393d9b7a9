/* ---- vectors: the widest that the compiler may use ---- */

#if !defined(NAME_SCALAR) && defined(__AVX512F__)
#include <immintrin.h>
#define NAME_LANES 16
#define NAME_TILE 24
typedef __m512 NAME_vec;
#define NAME_LOAD(p) _mm512_loadu_ps(p)
#define NAME_STORE(p, a) _mm512_storeu_ps(p, a)
#define NAME_SET(x) _mm512_set1_ps(x)
#define NAME_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define NAME_ADD(a, b) _mm512_add_ps(a, b)
#define NAME_MAX(a, b) _mm512_max_ps(a, b)
#define NAME_MIN(a, b) _mm512_min_ps(a, b)
#define NAME_MASK(p, a) \
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512((const void *)(p)), _mm512_castps_si512(a)))

#elif !defined(NAME_SCALAR) && defined(__AVX__)
#include <immintrin.h>
#define NAME_LANES 8
#define NAME_TILE 12
typedef __m256 NAME_vec;
#define NAME_LOAD(p) _mm256_loadu_ps(p)
#define NAME_STORE(p, a) _mm256_storeu_ps(p, a)
#define NAME_SET(x) _mm256_set1_ps(x)
#if defined(__FMA__)
#define NAME_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#else
#define NAME_FMA(a, b, c) _mm256_add_ps(_mm256_mul_ps(a, b), c)
#endif
#define NAME_ADD(a, b) _mm256_add_ps(a, b)
#define NAME_MAX(a, b) _mm256_max_ps(a, b)
#define NAME_MIN(a, b) _mm256_min_ps(a, b)
#define NAME_MASK(p, a) _mm256_and_ps(_mm256_loadu_ps((const float *)(const void *)(p)), a)

#elif !defined(NAME_SCALAR) && (defined(__SSE2__) || defined(_M_X64))
#include <emmintrin.h>
#define NAME_LANES 4
#define NAME_TILE 12
typedef __m128 NAME_vec;
#define NAME_LOAD(p) _mm_loadu_ps(p)
#define NAME_STORE(p, a) _mm_storeu_ps(p, a)
#define NAME_SET(x) _mm_set1_ps(x)
#define NAME_FMA(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
#define NAME_ADD(a, b) _mm_add_ps(a, b)
#define NAME_MAX(a, b) _mm_max_ps(a, b)
#define NAME_MIN(a, b) _mm_min_ps(a, b)
#define NAME_MASK(p, a) _mm_and_ps(_mm_loadu_ps((const float *)(const void *)(p)), a)

#elif !defined(NAME_SCALAR) && (defined(__ARM_NEON) || defined(__ARM_NEON__))
#include <arm_neon.h>
#define NAME_LANES 4
typedef float32x4_t NAME_vec;
#define NAME_LOAD(p) vld1q_f32(p)
#define NAME_STORE(p, a) vst1q_f32(p, a)
#define NAME_SET(x) vdupq_n_f32(x)
#if defined(__aarch64__)
#define NAME_TILE 24
#define NAME_FMA(a, b, c) vfmaq_f32(c, a, b)
#else
#define NAME_TILE 12
#define NAME_FMA(a, b, c) vmlaq_f32(c, a, b)
#endif
#define NAME_ADD(a, b) vaddq_f32(a, b)
#define NAME_MAX(a, b) vmaxq_f32(a, b)
#define NAME_MIN(a, b) vminq_f32(a, b)
#define NAME_MASK(p, a) vreinterpretq_f32_u32(vandq_u32(vld1q_u32(p), vreinterpretq_u32_f32(a)))

#else
#define NAME_LANES 1
#define NAME_TILE 12
typedef float NAME_vec;
#define NAME_LOAD(p) (*(p))
#define NAME_STORE(p, a) (*(p) = (a))
#define NAME_SET(x) (x)
#define NAME_FMA(a, b, c) ((c) + (a) * (b))
#define NAME_ADD(a, b) ((a) + (b))
#define NAME_MAX(a, b) ((a) > (b) ? (a) : (b))
#define NAME_MIN(a, b) ((a) < (b) ? (a) : (b))
#define NAME_MASK(p, a) (*(p) ? (a) : 0.0f)
#endif

/* Defined by whoever measures the steps: what to do before the first one, and after each. */
#ifndef NAME_BEGIN
#define NAME_BEGIN
#define NAME_DONE(step)
#endif

#define NAME_IS(lanes, tile) (NAME_LANES == (lanes) && NAME_TILE == (tile))
