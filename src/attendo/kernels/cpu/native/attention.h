// A whole channel and spatial attention in one call: SE, ECA, CBAM and its halves.
//
// The batch goes through in chunks that fit the cache, every chunk through all steps, so that the map comes from main
// memory once. The threads share each step and meet after it.
#pragma once

#include "attention_calls.h"
#include "channel_gate.h"
#include "moments.h"

namespace attendo {
namespace ATTENDO_ISA {

// One row of the spatial convolution over a padded map (2, H + k - 1, stride), its norm folded into scale and shift.
template <class Number>
inline void spatial_row(const Number* padded, index H, index stride, index k, const Number* weight, Number scale, Number shift,
                        index h, index W, Number* out) {
    using N = Store<Number>;
    using V = VectorOf<Number>;
    constexpr int L = LANES<Number>;
    const index plane = (H + k - 1) * stride;
    for (index w = 0; w < W; w += L) {
        V a{}, b{};
        for (index i = 0; i < k; ++i) {
            const Number *first = padded + (h + i) * stride + w, *second = first + plane;
            for (index j = 0; j < k; ++j) {
                a += N::load(first + j) * broadcast<V>(weight[i * k + j]);
                b += N::load(second + j) * broadcast<V>(weight[(k + i) * k + j]);
            }
        }
        const V sum = (a + b) * scale + shift;
        if (w + L <= W)
            N::save(out + w, sum);
        else
            for (index i = w; i < W; ++i) out[i] = sum[i - w];
    }
}

constexpr index CHUNK = ATTENDO_CHUNK;  // bytes of the map that go through all steps together

// How many samples those are.
template <class T>
inline index chunk_of(const Shape& s) {
    return least(s.samples, most(1, CHUNK / most(1, s.size() * index(sizeof(T)))));
}
// Into how many blocks of positions a sample is cut where each sums apart: decided by the shape alone.
inline index summed_blocks(const Shape& s) { return most(1, least(8, s.positions / 32)); }
// Whether the calling thread does it all: waking another costs microseconds.
inline bool little(index threads, index bytes) { return threads < 2 || bytes < 65536; }

// X: the source of the map that is recalibrated.
template <class T, class X>
struct AttentionSteps {
    using S = Store<T>;
    using Number = NumberOf<T>;

    const Attention& g;
    const Shape s;
    const index C, P, H, W, together, k, stride, padded_size, B, block;
    const ChannelGate<T> channel;
    const bool last, gated, maps;
    const T* const x;
    T* const out;
    Scratch<Number> pooled_, raw_, sum_, gate_, padded_, map_, weight_, sums_, norm_, moments_;
    Number scale = 1, shift = 0;  // of the norm after the spatial convolution

    explicit AttentionSteps(const Attention& call)
        : g(call),
          s{g.samples, g.channels, g.height * g.width, g.channels_last != 0},
          C(s.channels),
          P(s.positions),
          H(g.height),
          W(g.width),
          together(of_batch() ? s.samples : chunk_of<T>(s)),
          k(g.spatial_kernel),
          stride(W + k - 1 + LANES<T>),
          padded_size(2 * (H + k - 1) * stride),
          B(s.channels_last ? summed_blocks(s) : 1),
          block(ceil_of(P, B)),
          channel{in(g.fc1), in(g.fc1_bias), in(g.fc2), in(g.fc2_bias), in(g.conv), C, g.hidden, g.kernel_size,
                  g.mean && g.maximum ? 2 : 1},
          last(s.channels_last),
          gated(g.fc1 || g.conv),
          maps(g.spatial && !g.stats),
          x(in(g.x)),
          out(static_cast<T*>(g.out)),
          pooled_(g.pooled ? 0 : together * channel.both * C),
          raw_(g.raw ? 0 : together * channel.both * g.hidden),
          sum_(together * g.hidden),
          gate_(g.gate ? 0 : together * C),
          padded_(maps ? together * padded_size : 0),
          map_(maps || g.known ? together * P : 0),
          weight_(2 * k * k),
          sums_(last && gated && !of_batch() ? together * 2 * C * B : 0),
          norm_(g.before && !g.norm ? 4 * C : 0),
          moments_(of_batch() && !g.known ? 4 * s.samples * B * C : 0) {
        for (index i = 0; maps && i < 2 * k * k; ++i) {
            const index from = g.maximum_first ? (i + k * k) % (2 * k * k) : i;  // padded holds the mean first
            weight_.data[i] = S::get(in(g.spatial)[from]);
        }
        for (index i = 0; maps && i < together * padded_size; ++i) padded_.data[i] = 0;
        auto first = [](const void* p) { return S::get(*in(p)); };
        if (g.norm_mean)
            folded_norm<T>(in(g.norm_weight), in(g.norm_bias), first(g.norm_mean), first(g.norm_var), g.norm_eps, 0, &scale, &shift);
        for (index c = 0; g.before_mean && c < C; ++c)
            folded_norm<T>(in(g.before_weight), in(g.before_bias), S::get(in(g.before_mean)[c]), S::get(in(g.before_var)[c]),
                           g.before_eps, c, norm(0), norm(1));
    }

    static const T* in(const void* p) { return static_cast<const T*>(p); }
    bool of_batch() const { return g.before && !g.before_mean; }
    Number* kept(void* where, const Scratch<Number>& scratch, index at) const {
        return where ? static_cast<Number*>(where) + at : scratch.data;
    }
    Number* norm(int i) const { return kept(g.norm, norm_, 0) + i * C; }  // scale, shift, mean, variance
    Moments<Number> moments() const {
        Number* const m = moments_.data;
        const index n = s.samples * B * C;
        return {m, m + n, m + 2 * n, m + 3 * n};
    }
    X source(index n) const {
        if constexpr (std::is_same_v<X, Plain<T>>)
            return {x + n * s.size()};
        else
            return {x + n * s.size(), {norm(0)}, {norm(1)}};
    }

    void run() const {
        const bool alone = little(g.threads, s.elements() * index(sizeof(T)));
#pragma omp parallel num_threads(int(g.threads)) if (!alone)
        for (index first = 0; first < s.samples; first += together) {
            const index count = least(together, s.samples - first);
            Number* const gate = gated ? kept(g.gate, gate_, first * C) : nullptr;
            if (g.known) {
                widen(first, count);
            } else {
                Number* const pooled = kept(g.pooled, pooled_, first * channel.both * C);
                if (of_batch())
                    measure(pooled);
                else if (gated && last)
                    pool_last(first, count, pooled);
                else if (gated)
                    pool(first, count, pooled);
                if (gated) channel.excite(pooled, count, kept(g.raw, raw_, first * channel.both * g.hidden), sum_.data, gate);
                if (g.stats || maps) look(first, count, gate);
                if (g.stats) continue;
                if (maps) convolve(count);
            }
            finish(first, count, gate);
        }
    }

    void widen(index first, index count) const {
#pragma omp for schedule(static)
        for (index i = 0; i < count * P; ++i) map_.data[i] = S::get(in(g.known)[first * P + i]);
    }

    // Statistics of the whole batch, the norm they make, and what its result is pooled to.
    void measure(Number* pooled) const {
        const Moments<Number> all = moments();
#pragma omp for schedule(static)
        for (index task = 0; task < s.samples * (last ? B : C); ++task) {
            const index begin = task % B * block, end = least(P, begin + block);
            if (!last)
                row_moments(x + task * P, P, all.from(task));
            else if (begin < end)
                block_moments(x + (task / B * P + begin) * C, end - begin, C, all.from(task * C));
        }
        const index parts = ceil_of(P, block);  // of a sample: the last ones may be empty
        const Number size = Number(s.samples) * Number(P);
#pragma omp for schedule(static)
        for (index c = 0; c < C; ++c) {
            Number mean = 0, squares = 0;
            auto each = [&](auto f) {
                for (index n = 0; n < s.samples; ++n)
                    for (index b = 0; b < parts; ++b) f(Number(least(P, b * block + block) - b * block), (n * B + b) * C + c);
            };
            each([&](Number count, index i) { mean += count * all.mean[i]; });
            mean /= size;
            each([&](Number count, index i) { squares += all.squares[i] + count * (all.mean[i] - mean) * (all.mean[i] - mean); });
            norm(2)[c] = mean;
            norm(3)[c] = squares / size;
            folded_norm<T>(in(g.before_weight), in(g.before_bias), mean, norm(3)[c], g.before_eps, c, norm(0), norm(1));
            const Number scale_ = norm(0)[c], shift_ = norm(1)[c];
            for (index n = 0; n < s.samples; ++n) {
                Number sum = 0, top = all.top[n * B * C + c], bottom = all.bottom[n * B * C + c];
                for (index b = 0; b < parts; ++b) {
                    const index i = (n * B + b) * C + c;
                    sum += all.mean[i] * Number(least(P, b * block + block) - b * block);
                    top = quick_larger(top, all.top[i]);
                    bottom = all.bottom[i] < bottom ? all.bottom[i] : bottom;
                }
                if (g.means) static_cast<Number*>(g.means)[n * C + c] = sum / Number(P);
                if (!gated) continue;
                Number* to = pooled + n * channel.both * C + c;
                if (g.mean) *to = sum / Number(P) * scale_ + shift_, to += C;
                if (g.maximum) *to = S::round((scale_ < 0 ? bottom : top) * scale_ + shift_);
            }
        }
    }

    void pool(index first, index count, Number* pooled) const {
        const index band = most(1, least(C, 8192 / most(1, P))), bands = ceil_of(C, band);
#pragma omp for schedule(static)
        for (index task = 0; task < count * bands; ++task) {
            const index n = task / bands;
            for (index c = task % bands * band; c < least(C, (task % bands + 1) * band); ++c) {
                Number sum, best;
                row_stats<T>(source(first + n).row(c * P, c), P, &sum, g.maximum ? &best : nullptr);
                Number* to = pooled + n * channel.both * C + c;
                if (g.mean) *to = sum / Number(P), to += C;
                if (g.maximum) *to = best;
            }
        }
    }

    void pool_last(index first, index count, Number* pooled) const {
        Number* const sums = sums_.data;
        const index parts = ceil_of(P, block);
#pragma omp for schedule(static)
        for (index task = 0; task < count * B; ++task) {
            const index n = task / B, begin = task % B * block, end = least(P, begin + block);
            if (begin >= end) continue;
            block_stats<T>(source(first + n).row(begin * C, begin), end - begin, C, sums + task * 2 * C,
                           g.maximum ? sums + (task * 2 + 1) * C : nullptr);
        }
#pragma omp for schedule(static)
        for (index n = 0; n < count; ++n)
            for (index c = 0; c < C; ++c) {
                Number sum = 0, best = g.maximum ? sums[(n * B * 2 + 1) * C + c] : 0;
                for (index b = 0; b < parts; ++b) {
                    sum += sums[(n * B + b) * 2 * C + c];
                    if (g.maximum) best = larger(best, sums[((n * B + b) * 2 + 1) * C + c]);
                }
                Number* to = pooled + n * channel.both * C + c;
                if (g.mean) *to = sum / Number(P), to += C;
                if (g.maximum) *to = best;
            }
    }

    // Statistics of a position do not depend on how positions are shared out: an equal part to each thread.
    void look(index first, index count, const Number* gate) const {
        const index parts = together % g.threads ? g.threads : 1;
        const index tile = least(TILE, ceil_of(ceil_of(P, parts), LANES<T>) * LANES<T>), tiles = ceil_of(P, tile);
#pragma omp for schedule(static)
        for (index task = 0; task < count * tiles; ++task) {
            const index n = task / tiles, begin = task % tiles * tile, width = least(tile, P - begin);
            Number mean[TILE], maximum[TILE];
            Number* const ties = g.ties ? static_cast<Number*>(g.ties) + (first + n) * P + begin : nullptr;
            tile_of_stats<T>(source(first + n), s, begin, width, gate ? gate + n * C : nullptr, mean, maximum, ties);
            if (g.stats) {
                T* const means = static_cast<T*>(g.stats) + (first + n) * 2 * P + begin;
                for (index p = 0; p < width; ++p) means[p] = S::put(mean[p]), means[P + p] = S::put(maximum[p]);
                continue;
            }
            Number* const plane = padded_.data + n * padded_size + k / 2 * stride + k / 2;
            for (index p = 0; p < width; ++p) {
                const index at = (begin + p) / W * stride + (begin + p) % W;
                plane[at] = mean[p];
                plane[padded_size / 2 + at] = maximum[p];
            }
        }
    }

    void convolve(index count) const {
#pragma omp for schedule(static)
        for (index task = 0; task < count * H; ++task) {
            const index n = task / H, h = task % H;
            Number* const row = map_.data + n * P + h * W;
            spatial_row(padded_.data + n * padded_size, H, stride, k, weight_.data, scale, shift, h, W, row);
            sigmoid_of(row, W);
        }
    }

    void finish(index first, index count, const Number* gate) const {
        const index rows = last ? P : C, strip = most(1, least(rows, 8192 / most(1, last ? C : P)));
        const index strips = ceil_of(rows, strip);
        const T* const residual = in(g.residual);
        const Blend<T> blend(g.blend);
        with_flag(g.blend, [&](auto blended) {
#pragma omp for schedule(static)
            for (index task = 0; task < count * strips; ++task) {
                const index n = task / strips, begin = task % strips * strip, at = (first + n) * s.size();
                scaled_rows<T, decltype(blended)::value>(source(first + n), s, begin, least(rows, begin + strip),
                                                         gate ? gate + n * C : nullptr,
                                                         maps || g.known ? map_.data + n * P : nullptr, blend,
                                                         residual ? residual + at : nullptr, g.relu != 0, out + at);
            }
        });
    }
};

template <class T>
void attention(const Attention& call) {
    if (!call.before)
        AttentionSteps<T, Plain<T>>(call).run();
    else if (call.channels_last)
        AttentionSteps<T, Normed<T, true>>(call).run();
    else
        AttentionSteps<T, Normed<T, false>>(call).run();
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
