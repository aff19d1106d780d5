/* The fused operations of vgen.ops for float32 on a CPU; the references beside them in Python say what they compute.
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

INLINE void norm_silu_row(const float *source, const float *shift, const float *scale, float *target, int64_t size,
                          float eps) {
    float r = 1.0f / sqrtf(mean_square(source, size) + eps);
    if (shift) {
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            float y = source[i] * r * (1.0f + scale[i]) + shift[i];
            target[i] = y / (1.0f + exponential(-y));
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            float y = source[i] * r;
            target[i] = y / (1.0f + exponential(-y));
        }
    }
}

/* out = silu(rms_norm over channels * (1 + scale) + shift), channels last, with the first frame repeated `before`
 * times in front and the last `after` times behind. x: [batch, frames, area, size]; shift, scale: [batch, size]. */
void vgen_pixel_norm_silu(const float *x, const float *shift, const float *scale, float *out, int64_t batch,
                          int64_t frames, int64_t area, int64_t size, int64_t before, int64_t after, float eps) {
    int64_t total = before + frames + after;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < batch * frames * area; part++) {
        int64_t b = part / (frames * area), inside = part % (frames * area);
        const float *source = x + part * size;
        const float *t = shift ? shift + b * size : 0, *s = shift ? scale + b * size : 0;
        float *target = out + ((b * total + before) * area + inside) * size;
        switch (size) { /* known sizes unroll */
            case 16: norm_silu_row(source, t, s, target, 16, eps); break;
            case 32: norm_silu_row(source, t, s, target, 32, eps); break;
            case 64: norm_silu_row(source, t, s, target, 64, eps); break;
            case 128: norm_silu_row(source, t, s, target, 128, eps); break;
            default: norm_silu_row(source, t, s, target, size, eps);
        }
    }
    size_t frame = (size_t)(area * size) * sizeof(float);
    for (int64_t b = 0; b < batch; b++) {
        float *clip = out + b * total * area * size;
        for (int64_t i = 0; i < before; i++) memcpy(clip + i * area * size, clip + before * area * size, frame);
        const float *last = clip + (before + frames - 1) * area * size;
        for (int64_t i = 0; i < after; i++) memcpy(clip + (before + frames + i) * area * size, last, frame);
    }
}

/* Channels (d, a, p, q) of [batch, frames, rows, columns, d * a * p * q] to [batch, frames * a - skip, rows * p,
 * columns * q, d]; the first `skip` frames are left out. */
void vgen_depth_to_space(const float *x, float *out, int64_t batch, int64_t frames, int64_t rows, int64_t columns,
                         int64_t size, int64_t a, int64_t p, int64_t q, int64_t skip) {
    int64_t volume = a * p * q, made = frames * a - skip, width = columns * q;
#pragma omp parallel for schedule(static)
    for (int64_t line = 0; line < batch * frames * rows; line++) {
        int64_t b = line / (frames * rows), f = line / rows % frames, h = line % rows;
        for (int64_t w = 0; w < columns; w++) {
            const float *source = x + (line * columns + w) * size * volume;
            for (int64_t k = 0; k < volume; k++) {
                int64_t frame = f * a + k / (p * q) - skip;
                if (frame < 0) continue;
                int64_t row = h * p + k / q % p, column = w * q + k % q;
                float *target = out + (((b * made + frame) * rows * p + row) * width + column) * size;
                for (int64_t d = 0; d < size; d++) target[d] = source[d * volume + k];
            }
        }
    }
}
