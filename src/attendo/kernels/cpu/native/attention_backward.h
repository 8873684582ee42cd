// The gradients of a whole attention: the gradient of the gates needs all positions of a channel, that of the map needs
// the gates'. Where no norm in training needs the whole batch, chunks of it go through both, and the second step reads what
// is still in the cache.
#pragma once

#include "attention.h"
#include "factors.h"
#include "spatial_gradient.h"

namespace attendo {
namespace ATTENDO_ISA {

// LAST: channels_last. NORMED: the norm before belongs to it.
template <class T, bool LAST, bool NORMED>
struct AttentionBackwardSteps {
    using S = Store<T>;
    using Number = NumberOf<T>;
    using Vector = VectorOf<T>;
    using Channel = ChannelFactors<T, LAST>;
    using Position = PositionFactors<T, !LAST>;

    const AttentionBackward& g;
    const Shape s;
    const index C, P, together, B, block, rows, length, strip, strips;
    const ChannelGate<T> channel;
    const bool gated, spatial;
    const Blend<T> blend;
    const T *const up, *const x, *const out;
    T *const gradient, *const residual_gradient;
    Scratch<Number> channels_, positions_, gate_gradient_, sum_gradient_, pooled_gradient_, partial_;

    explicit AttentionBackwardSteps(const AttentionBackward& call)
        : g(call),
          s{g.samples, g.channels, g.height * g.width, LAST},
          C(s.channels),
          P(s.positions),
          together(NORMED ? s.samples : chunk_of<T>(s)),
          B(LAST ? summed_blocks(s) : 1),
          block(ceil_of(P, B)),
          rows(LAST ? P : C),
          length(LAST ? C : P),
          strip(most(1, least(rows, 8192 / most(1, length)))),
          strips(ceil_of(rows, strip)),
          channel{in(g.fc1), nullptr, in(g.fc2), nullptr, in(g.conv), C, g.hidden, g.kernel_size, g.mean && g.maximum ? 2 : 1},
          gated(g.gate),
          spatial(g.spatial && !g.spatial_gradient),
          blend(g.blend),
          up(in(g.up)),
          x(in(g.x)),
          out(in(g.out)),
          gradient(static_cast<T*>(g.gradient)),
          residual_gradient(static_cast<T*>(g.residual_gradient)),
          channels_(together * 11 * C),
          positions_(spatial ? together * 4 * P : 0),
          gate_gradient_(together * C),
          sum_gradient_(together * g.hidden),
          pooled_gradient_(together * channel.both * C),
          partial_(LAST ? together * B * 4 * C : 0) {}

    static const T* in(const void* p) { return static_cast<const T*>(p); }
    static const Number* number(const void* p) { return static_cast<const Number*>(p); }
    static Number* to(void* p) { return static_cast<Number*>(p); }
    Number* of_channels(int i) const { return channels_.data + i * together * C; }
    Number* of_positions(int i) const { return positions_.data + i * together * P; }
    // In the order of ChannelFactors, and what is summed over the positions of a channel: the gradient of the gated map;
    // the same times the distance from the mean, or times x where there is no norm; how many are at the maximum; the
    // distances of those.
    enum { GATE, FACTOR, FLAT, SHARE, TOP, SLOPE, CENTRE, SUM, WEIGHTED, TIES, AT_TOP };

    auto source(index n) const {
        if constexpr (NORMED)
            return Normed<T, LAST>{x + n * s.size(), {number(g.norm)}, {number(g.norm) + C}};
        else
            return Plain<T>{x + n * s.size()};
    }
    // Row r of sample n of the chunk.
    Channel channel_of(index n, index r) const {
        const Channel all = {{of_channels(GATE)}, {of_channels(FACTOR)}, {of_channels(FLAT)},  {of_channels(SHARE)},
                             {of_channels(TOP)},  {of_channels(SLOPE)},  {of_channels(CENTRE)}};
        return all.from(n * C + (LAST ? 0 : r));
    }
    Position position_of(index n, index r) const {
        if (!spatial) return {};
        const Position all = {{of_positions(0)}, {of_positions(1)}, {of_positions(2)}, {of_positions(3)}};
        return all.from(n * P + (LAST ? r : 0));
    }

    void run() const {
        const bool alone = little(g.threads, s.elements() * index(sizeof(T)));
#pragma omp parallel num_threads(int(g.threads)) if (!alone)
        for (index first = 0; first < s.samples; first += together) {
            const index count = least(together, s.samples - first);
            prepare(first, count);
            if (g.spatial_gradient) {
                spatial_gradient<T, LAST>(*this, first, count);
                continue;
            }
            if (gated || NORMED) sum(first, count);
            if (gated) {
                const index vectors = first * channel.both;
                channel.differentiate(gate_gradient_.data, number(g.gate) + first * C, number(g.pooled) + vectors * C,
                                      number(g.raw) + vectors * g.hidden, count, to(g.logits_gradient) + first * C,
                                      sum_gradient_.data, to(g.raw_gradient) + vectors * g.hidden, pooled_gradient_.data,
                                      to(g.conv_gradient) + first * g.kernel_size);
            }
            share(count);
            if (gradient || !(gated || NORMED)) finish(first, count);
        }
    }

    void prepare(index first, index count) const {
#pragma omp for schedule(static)
        for (index n = 0; n < count; ++n) {
            for (index c = 0; c < C; ++c) {
                const index i = n * C + c;
                const Number gate = gated ? number(g.gate)[(first + n) * C + c] : 1;
                of_channels(GATE)[i] = gate;
                of_channels(FACTOR)[i] = spatial ? gate : blend.of(gate);
                of_channels(FLAT)[i] = of_channels(SHARE)[i] = of_channels(TOP)[i] = of_channels(SLOPE)[i] = 0;
                of_channels(CENTRE)[i] = NORMED ? number(g.norm)[2 * C + c] : 0;
                if (gated && g.maximum) of_channels(TOP)[i] = number(g.pooled)[((first + n + 1) * channel.both - 1) * C + c];
            }
            for (index p = 0; spatial && p < P; ++p) {
                const index at = (first + n) * P + p, mean = (first + n) * 2 * P + p, maximum = mean + P;
                of_positions(0)[n * P + p] = S::get(in(g.spatial)[at]) * blend.share;
                of_positions(1)[n * P + p] = S::get(in(g.stats_gradient)[mean]) / Number(C);
                of_positions(2)[n * P + p] = S::get(in(g.stats_gradient)[maximum]) / number(g.ties)[at];
                of_positions(3)[n * P + p] = S::get(in(g.stats)[maximum]);
            }
        }
    }

    // f is told, of `width` elements of row r from the i-th on, the gradient that passes the ReLU, and where it stands.
    template <class F>
    void each(index n, index r, index from, index width, const F& f) const {
        const index begin = n * s.size() + r * length + from;
        const T* const ups = (g.masked ? residual_gradient : up) + begin;
        const T* const outs = out && !g.masked ? out + begin : nullptr;
        T* const kept = residual_gradient && !g.masked ? residual_gradient + begin : nullptr;
        along<T>(width, [&](auto* kind, index i) {
            auto u = got(kind, ups + i);
            if (outs) u = passed(u, got(kind, outs + i));
            if (kept) put(kept + i, u);
            f(kind, u, from + i);
        });
    }

    // What is summed over the positions of each channel, and the gradient of the residual.
    void sum(index first, index count) const {
        with_flag(spatial, [&](auto has_spatial) {
#pragma omp for schedule(static)
            for (index task = 0; task < count * (LAST ? B : strips); ++task) {
                const index n = task / (LAST ? B : strips), part = task % (LAST ? B : strips), step = LAST ? block : strip;
                Number* const own = partial_.data + task * 4 * C;
                for (index i = 0; LAST && i < 4 * C; ++i) own[i] = 0;
                for (index r = part * step; r < least(rows, (part + 1) * step); ++r) {
                    const auto xs = source(first + n).row(r * length, r);
                    const Plain<T> cs = {x + (first + n) * s.size() + r * length};
                    const Channel channel_ = channel_of(n, r);
                    const Position position = position_of(n, r);
                    Vector sums[4] = {};
                    Number rests[4] = {};
                    auto add = [&](auto* kind, int which, auto v, index i) {
                        if constexpr (LAST)
                            put(own + which * C + i, got(kind, own + which * C + i) + v);
                        else if constexpr (sizeof v == sizeof(Vector))
                            sums[which] += v;
                        else
                            rests[which] += v;
                    };
                    each(first + n, r, 0, length, [&](auto* kind, auto u, index i) {
                        const auto v = xs.at(kind, i);
                        const auto passed_ = gated_gradient<T, decltype(has_spatial)::value>(kind, u, v, channel_, position, i);
                        if constexpr (NORMED) {
                            add(kind, 0, passed_, i);
                            add(kind, 1, passed_ * (cs.at(kind, i) - channel_.centre.at(kind, i)), i);
                        } else {
                            add(kind, 1, passed_ * v, i);
                        }
                    });
                    if (gated && g.maximum)
                        along<T>(length, [&](auto* kind, index i) {
                            const auto here = at(xs.at(kind, i), channel_.top.at(kind, i));
                            add(kind, 2, here, i);
                            if constexpr (NORMED) add(kind, 3, here * (cs.at(kind, i) - channel_.centre.at(kind, i)), i);
                        });
                    for (int which = 0; !LAST && which < 4; ++which)
                        of_channels(SUM + which)[n * C + r] = sum_of<T>(sums[which]) + rests[which];
                }
            }
        });
        if constexpr (LAST) {
#pragma omp for schedule(static)
            for (index i = 0; i < count * 4 * C; ++i) {
                const index n = i / (4 * C), which = i / C % 4, c = i % C;
                Number all = 0;
                for (index b = 0; b < B; ++b) all += partial_.data[(n * B + b) * 4 * C + which * C + c];
                of_channels(SUM + int(which))[n * C + c] = all;
            }
        }
#pragma omp for schedule(static)
        for (index i = 0; i < count * C; ++i) {
            Number gradient_ = of_channels(WEIGHTED)[i];
            if constexpr (NORMED) {
                const Number *const scale = number(g.norm) + i % C, *const shift = scale + C, centre = of_channels(CENTRE)[i];
                gradient_ = gradient_ * *scale + of_channels(SUM)[i] * (*scale * centre + *shift);
            }
            if (!spatial) {
                if (g.blend_gradient) to(g.blend_gradient)[first * C + i] = gradient_ * (of_channels(GATE)[i] - 1);
                gradient_ *= blend.share;
            }
            gate_gradient_.data[i] = gradient_;
        }
    }

    // What each position gets of the gradients of the pooled numbers, and by way of the norm's statistics.
    void share(index count) const {
        const Number size = Number(s.samples) * Number(P);
#pragma omp for schedule(static)
        for (index c = 0; c < C; ++c) {
            Number of_bias = 0, of_weight = 0;
            for (index n = 0; n < count; ++n) {
                const index i = n * C + c;
                const Number* from = pooled_gradient_.data + n * channel.both * C + c;
                const Number of_mean = gated && g.mean ? *from : 0;
                const Number of_maximum = gated && g.maximum ? from[(channel.both - 1) * C] : 0;
                of_channels(FLAT)[i] = of_mean / Number(P);
                if (gated && g.maximum) of_channels(SHARE)[i] = of_maximum / of_channels(TIES)[i];
                if constexpr (NORMED) {
                    of_bias += of_channels(GATE)[i] * of_channels(SUM)[i] + of_mean + of_maximum;
                    of_weight += of_channels(GATE)[i] * of_channels(WEIGHTED)[i] +
                                 of_mean * (number(g.means)[i] - of_channels(CENTRE)[i]) +
                                 (gated && g.maximum ? of_channels(SHARE)[i] * of_channels(AT_TOP)[i] : 0);
                }
            }
            if constexpr (NORMED) {
                const Number scale = number(g.norm)[c], deviation = 1 / std::sqrt(number(g.norm)[3 * C + c] + Number(g.before_eps));
                of_weight *= deviation;
                if (g.norm_gradient) {
                    to(g.norm_gradient)[c] = of_weight;
                    to(g.norm_gradient)[C + c] = of_bias;
                }
                for (index n = 0; n < count; ++n) {
                    const index i = n * C + c;
                    of_channels(FACTOR)[i] *= scale;
                    of_channels(SHARE)[i] *= scale;
                    of_channels(FLAT)[i] = scale * (of_channels(FLAT)[i] - of_bias / size);
                    of_channels(SLOPE)[i] = -scale * deviation * of_weight / size;
                }
            }
        }
    }

    void finish(index first, index count) const {
        const bool known = residual_gradient && (g.masked || gated || NORMED);  // already rectified, and in the cache
        const T* const ups = known ? residual_gradient : up;
        const T* const outs = known ? nullptr : out;
        T* const kept = known ? nullptr : residual_gradient;
        const bool mixed = spatial && g.blend;
        with_flag(spatial, [&](auto has_spatial) {
            with_flag(gated && g.maximum, [&](auto maximum) {
#pragma omp for schedule(static)
                for (index task = 0; task < count * strips; ++task) {
                    const index n = task / strips;
                    for (index r = task % strips * strip; r < least(rows, (task % strips + 1) * strip); ++r) {
                        constexpr bool SPATIAL = decltype(has_spatial)::value, MAXIMUM = decltype(maximum)::value;
                        const index begin = (first + n) * s.size() + r * length;
                        const auto xs = source(first + n).row(r * length, r);
                        const Channel channel_ = channel_of(n, r);
                        const Position position = position_of(n, r);
                        along<T>(length, [&](auto* kind, index i) {
                            auto u = got(kind, ups + begin + i);
                            if (outs) u = passed(u, got(kind, outs + begin + i));
                            if (kept) put(kept + begin + i, u);
                            if (!gradient) return;
                            auto v = u;
                            if constexpr (SPATIAL || MAXIMUM) v = xs.at(kind, i);
                            auto all = gated_gradient<T, SPATIAL>(kind, u, v, channel_, position, i) *
                                           channel_.factor.at(kind, i) +
                                       channel_.flat.at(kind, i);
                            if constexpr (SPATIAL)
                                if (mixed) all += u * blend.rest;
                            if constexpr (NORMED)
                                all += (got(kind, x + begin + i) - channel_.centre.at(kind, i)) * channel_.slope.at(kind, i);
                            if constexpr (MAXIMUM)
                                all += at(v, channel_.top.at(kind, i)) * channel_.share.at(kind, i);
                            put(gradient + begin + i, all);
                        });
                    }
                }
            });
        });
    }
};

template <class T>
void attention_backward(const AttentionBackward& call) {
    with_flag(call.channels_last, [&](auto last) {
        with_flag(call.norm, [&](auto normed) {
            AttentionBackwardSteps<T, decltype(last)::value, decltype(normed)::value>(call).run();
        });
    });
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
