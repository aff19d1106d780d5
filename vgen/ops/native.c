/* The fused operations of vgen.ops for float32 on a CPU; the references next to them in Python say what they compute.
 *
 * Plain C, no headers of torch: it is compiled in a second by the system's compiler when it is first needed, for the
 * processor at hand. Sizes are counted in elements; rows are contiguous.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* e^x to two units in the last place: reduced by ln 2, then a polynomial (Cephes, Moshier 1992). */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504088896341f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return p * power.f;
}

INLINE float mean_square(const float *row, int64_t size) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += row[i] * row[i];
    return sum / (float)size;
}

/* sum = x + branch * gate; out = rms_norm(sum) * weight * (1 + scale) + shift.
 * gate, shift and scale: one row for every token or one for all of a sample, by their strides. Any of branch, gate and
 * weight may be null; without branch, sum is x and is not written. */
void vgen_residual_norm_modulate(const float *x, const float *branch, const float *gate, const float *weight,
                                 const float *shift, const float *scale, float *sum, float *out, int64_t batch,
                                 int64_t tokens, int64_t size, int64_t gate_batch, int64_t gate_row, int64_t mod_batch,
                                 int64_t mod_row, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < batch * tokens; row++) {
        int64_t b = row / tokens, n = row % tokens;
        const float *source = x + row * size;
        if (branch) {
            const float *add = branch + row * size;
            float *target = sum + row * size;
            if (gate) {
                const float *g = gate + b * gate_batch + n * gate_row;
#pragma omp simd
                for (int64_t i = 0; i < size; i++) target[i] = source[i] + add[i] * g[i];
            } else {
#pragma omp simd
                for (int64_t i = 0; i < size; i++) target[i] = source[i] + add[i];
            }
            source = target;
        }
        float r = 1.0f / sqrtf(mean_square(source, size) + eps);
        const float *s = scale + b * mod_batch + n * mod_row, *t = shift + b * mod_batch + n * mod_row;
        float *target = out + row * size;
        if (weight) {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) target[i] = source[i] * r * weight[i] * (1.0f + s[i]) + t[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) target[i] = source[i] * r * (1.0f + s[i]) + t[i];
        }
    }
}

/* out = rotate(rms_norm(x) * weight) by neighbouring pairs of channels; cosines null: not rotated. */
void vgen_norm_rotate(const float *x, const float *weight, const float *cosines, const float *sines, float *out,
                      int64_t batch, int64_t tokens, int64_t size, int64_t x_batch, int64_t x_row,
                      int64_t angle_batch, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < batch * tokens; row++) {
        int64_t b = row / tokens, n = row % tokens, half = size / 2;
        const float *source = x + b * x_batch + n * x_row;
        float *target = out + row * size;
        float r = 1.0f / sqrtf(mean_square(source, size) + eps);
        if (!cosines) {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) target[i] = source[i] * r * weight[i];
            continue;
        }
        const float *c = cosines + b * angle_batch + n * half, *s = sines + b * angle_batch + n * half;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            float first = source[2 * i] * r * weight[2 * i], second = source[2 * i + 1] * r * weight[2 * i + 1];
            target[2 * i] = first * c[i] - second * s[i];
            target[2 * i + 1] = second * c[i] + first * s[i];
        }
    }
}

#define BLOCK 256 /* positions at a time: their sums and the rows of all channels stay in the cache */
#define GROUP 16  /* channels summed before they join the whole: rounding grows with the longest chain of sums */

/* out = silu(rms_norm over channels * (1 + scale) + shift), with the first frame repeated `before` times in front and
 * the last `after` times behind. x: [batch, size, frames, area]; shift, scale: [batch, size], or both null. */
void vgen_pixel_norm_silu(const float *x, const float *shift, const float *scale, float *out, int64_t batch,
                          int64_t frames, int64_t area, int64_t size, int64_t before, int64_t after, float eps) {
    int64_t inside = frames * area, total = (before + frames + after) * area;
    int64_t blocks = (inside + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < batch * blocks; part++) {
        int64_t b = part / blocks, start = part % blocks * BLOCK;
        int64_t count = inside - start < BLOCK ? inside - start : BLOCK;
        float factor[BLOCK] = {0};
        for (int64_t group = 0; group < size; group += GROUP) {
            float sum[BLOCK] = {0};
            for (int64_t c = group; c < size && c < group + GROUP; c++) {
                const float *row = x + (b * size + c) * inside + start;
#pragma omp simd
                for (int64_t i = 0; i < count; i++) sum[i] += row[i] * row[i];
            }
#pragma omp simd
            for (int64_t i = 0; i < count; i++) factor[i] += sum[i];
        }
#pragma omp simd
        for (int64_t i = 0; i < count; i++) factor[i] = 1.0f / sqrtf(factor[i] / (float)size + eps);
        for (int64_t c = 0; c < size; c++) {
            const float *row = x + (b * size + c) * inside + start;
            float *target = out + (b * size + c) * total + before * area + start;
            float s = shift ? 1.0f + scale[b * size + c] : 1.0f, t = shift ? shift[b * size + c] : 0.0f;
#pragma omp simd
            for (int64_t i = 0; i < count; i++) {
                float y = row[i] * factor[i] * s + t;
                target[i] = y / (1.0f + exponential(-y));
            }
        }
    }
    if (!before && !after) return;
#pragma omp parallel for schedule(static)
    for (int64_t channel = 0; channel < batch * size; channel++) {
        float *clip = out + channel * total, *first = clip + before * area;
        float *last = first + (frames - 1) * area;
        size_t frame = (size_t)area * sizeof(float);
        for (int64_t i = 0; i < before; i++) memcpy(clip + i * area, first, frame);
        for (int64_t i = 1; i <= after; i++) memcpy(last + i * area, last, frame);
    }
}

/* [batch, size * a * p * q, frames, rows, columns] to [batch, size, frames * a - skip, rows * p, columns * q]; the
 * first `skip` frames are left out. */
void vgen_depth_to_space(const float *x, float *out, int64_t batch, int64_t frames, int64_t rows, int64_t columns,
                         int64_t size, int64_t a, int64_t p, int64_t q, int64_t skip) {
    int64_t made = frames * a - skip, height = rows * p, area = rows * columns;
#pragma omp parallel for schedule(static)
    for (int64_t line = 0; line < batch * size * made * height; line++) {
        int64_t row = line % height, frame = line / height % made + skip, channel = line / (height * made);
        int64_t deep = ((channel * a + frame % a) * p + row % p) * q;
        float *target = out + line * columns * q;
        for (int64_t k = 0; k < q; k++) {
            const float *source = x + ((deep + k) * frames + frame / a) * area + row / p * columns;
            for (int64_t w = 0; w < columns; w++) target[w * q + k] = source[w];
        }
    }
}
