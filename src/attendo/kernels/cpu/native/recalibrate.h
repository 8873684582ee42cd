// The map times its gates, plus a shortcut, rectified: one read of each and one write.
#pragma once

#include "spatial_stats.h"

namespace attendo {
namespace ATTENDO_ISA {

template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

// Call f with a flag as a compile-time constant.
template <class F>
inline void with_flag(bool flag, const F& f) {
    if (flag)
        f(Flag<true>{});
    else
        f(Flag<false>{});
}

// How much of the recalibrated map to take, and of the map itself.
template <class T>
struct Blend {
    NumberOf<T> share = 1, rest = 0;
    explicit Blend(const void* one) {
        if (one) share = Store<T>::get(*static_cast<const T*>(one)), rest = 1 - share;
    }
    NumberOf<T> of(NumberOf<T> gate) const { return gate * share + rest; }
};

// out = x * scale * gates + residual over n consecutive elements; gates and residual only where the flags say so.
// BLENDED: mixed with x before the residual is added, by products that leave a share of 0 or 1 exact.
template <bool GATED, bool BLENDED, bool ADDED, bool RECTIFIED, class T, class X>
inline void scaled_row(X x, NumberOf<T> scale, const NumberOf<T>* gates, const Blend<T>& blend, const T* residual, T* out, index n) {
    using S = Store<T>;
    using V = VectorOf<T>;
    using N = Store<NumberOf<T>>;
    constexpr int L = LANES<T>;
    const V scales = broadcast<V>(scale), shares = broadcast<V>(blend.share), rests = broadcast<V>(blend.rest);
    index i = 0;
    for (; i + L <= n; i += L) {
        V v = x.vector(i) * scales;
        if (GATED) v = v * N::load(gates + i);
        if (BLENDED) v = v * shares + x.vector(i) * rests;
        if (ADDED) v = v + S::load(residual + i);
        S::save(out + i, RECTIFIED ? rectified(v) : v);
    }
    for (; i < n; ++i) {
        NumberOf<T> v = x.number(i) * scale;
        if (GATED) v = v * gates[i];
        if (BLENDED) v = v * blend.share + x.number(i) * blend.rest;
        if (ADDED) v = v + S::get(residual[i]);
        out[i] = S::put(RECTIFIED ? rectified(v) : v);
    }
}

// Rows [from, to) of one sample: channels of the contiguous layout, positions of the channels_last one.
// channel: C factors or null; spatial: P factors or null. out may be where x comes from. BLENDED: as blend says.
template <class T, bool BLENDED, class X>
void scaled_rows(X x, const Shape& s, index from, index to, const NumberOf<T>* channel, const NumberOf<T>* spatial,
                 const Blend<T>& blend, const T* residual, bool relu, T* out) {
    const index row = s.channels_last ? s.channels : s.positions;
    const NumberOf<T>* along = s.channels_last ? channel : spatial;   // varies within a row
    const NumberOf<T>* across = s.channels_last ? spatial : channel;  // one factor per row
    with_flag(along, [&](auto gated) {
        with_flag(residual, [&](auto added) {
            with_flag(relu, [&](auto rectify) {
                for (index r = from; r < to; ++r)
                    scaled_row<decltype(gated)::value, BLENDED, decltype(added)::value, decltype(rectify)::value, T>(
                        x.row(r * row, r), across ? across[r] : 1, along, blend, residual ? residual + r * row : nullptr,
                        out + r * row, row);
            });
        });
    });
}

// channel: (N or 1, C); spatial: (N or 1, P); both may be null, as may residual.
template <class T>
void recalibrate(const T* x, Shape s, const T* channel, index channel_samples, const T* spatial, index spatial_samples,
                 const T* residual, bool relu, T* out, int threads) {
    using S = Store<T>;
    using Number = NumberOf<T>;
    const index C = s.channels, P = s.positions;
    Scratch<Number> channels(channel ? channel_samples * C : 0), spatials(spatial ? spatial_samples * P : 0);
    Number *const c = channels.data, *const p = spatials.data;
    for (index i = 0; channel && i < channel_samples * C; ++i) c[i] = S::get(channel[i]);
    for (index i = 0; spatial && i < spatial_samples * P; ++i) p[i] = S::get(spatial[i]);
    const index rows = s.channels_last ? P : C;
    const index together = most(1, least(rows, 16384 / most(1, s.channels_last ? C : P)));
    const index tasks = ceil_of(rows, together);
    parallel(threads, s.samples * tasks, s.elements() * index(sizeof(T)), [=](index task) {
        const index n = task / tasks, from = task % tasks * together;
        scaled_rows<T, false>(Plain<T>{x + n * s.size()}, s, from, least(rows, from + together),
                              c ? c + (channel_samples > 1 ? n * C : 0) : nullptr,
                              p ? p + (spatial_samples > 1 ? n * P : 0) : nullptr, Blend<T>(nullptr),
                              residual ? residual + n * s.size() : nullptr, relu, out + n * s.size());
    });
}

// One row of the backward pass. along and across as in scaled_rows; up is the gradient after the ReLU.
//   gradient of x       up * along * across
//   gradient of across  sum of up * x * along, returned
//   gradient of along   up * x * across, added to `along_gradient`
template <bool GATED, bool RECTIFIED, bool ALONG, class T>
inline NumberOf<T> backward_row(const T* up_, const T* x, const T* out, NumberOf<T> across, const NumberOf<T>* along,
                                T* gradient, T* residual_gradient, NumberOf<T>* along_gradient, index n) {
    using S = Store<T>;
    using V = VectorOf<T>;
    using Number = NumberOf<T>;
    using N = Store<Number>;
    constexpr int L = LANES<T>;
    const V acrosses = broadcast<V>(across);
    V sum{};
    index i = 0;
    for (; i + L <= n; i += L) {
        V up = S::load(up_ + i);
        if (RECTIFIED) up = passed(up, S::load(out + i));
        const V gate = GATED ? N::load(along + i) : broadcast<V>(Number(1));
        if (gradient) S::save(gradient + i, up * acrosses * gate);
        const V product = up * S::load(x + i);
        sum += product * gate;
        if (ALONG) N::save(along_gradient + i, N::load(along_gradient + i) + product * acrosses);
        if (residual_gradient) S::save(residual_gradient + i, up);
    }
    Number total = sum_of<T>(sum);
    for (; i < n; ++i) {
        Number up = S::get(up_[i]);
        if (RECTIFIED) up = passed(up, S::get(out[i]));
        const Number gate = GATED ? along[i] : 1;
        if (gradient) gradient[i] = S::put(up * across * gate);
        const Number product = up * S::get(x[i]);
        total += product * gate;
        if (ALONG) along_gradient[i] += product * across;
        if (residual_gradient) residual_gradient[i] = S::put(up);
    }
    return total;
}

// Blocks of rows whose share of the gradient along a row is summed apart: decided by the shape alone.
inline index row_blocks_of(const Shape& s) {
    return s.samples >= 8 ? 1 : most(1, least(8, (s.channels_last ? s.positions : s.channels) / 16));
}

// Gradients of x, of the gates ((N, C) and (N, P): sums over samples are the caller's) and of the residual; any may be
// null. out is the forward pass's result, read where it was rectified.
template <class T>
void recalibrate_backward(const T* up, const T* x, Shape s, const T* channel, index channel_samples, const T* spatial,
                          index spatial_samples, const T* out, T* gradient, NumberOf<T>* channel_gradient,
                          NumberOf<T>* spatial_gradient, T* residual_gradient, int threads) {
    using S = Store<T>;
    using Number = NumberOf<T>;
    const index C = s.channels, P = s.positions;
    Scratch<Number> channels(channel ? channel_samples * C : 0), spatials(spatial ? spatial_samples * P : 0);
    Number *const cs = channels.data, *const ps = spatials.data;
    for (index i = 0; channel && i < channel_samples * C; ++i) cs[i] = S::get(channel[i]);
    for (index i = 0; spatial && i < spatial_samples * P; ++i) ps[i] = S::get(spatial[i]);
    const index rows = s.channels_last ? P : C, row = s.channels_last ? C : P;
    Number* const along_gradient = s.channels_last ? channel_gradient : spatial_gradient;
    Number* const across_gradient = s.channels_last ? spatial_gradient : channel_gradient;
    const index B = row_blocks_of(s), block = ceil_of(rows, B);
    Scratch<Number> partials(along_gradient && B > 1 ? s.samples * B * row : 0);
    Number* const partial = B > 1 ? partials.data : along_gradient;
    parallel(threads, s.samples * B, s.elements() * index(sizeof(T)), [=](index task) {
        const index n = task / B, from = least(rows, task % B * block), to = least(rows, from + block);
        const Number* c = cs ? cs + (channel_samples > 1 ? n * C : 0) : nullptr;
        const Number* p = ps ? ps + (spatial_samples > 1 ? n * P : 0) : nullptr;
        const Number *along = s.channels_last ? c : p, *across = s.channels_last ? p : c;
        Number* own = along_gradient ? partial + task * row : nullptr;
        for (index i = 0; own && i < row; ++i) own[i] = 0;
        with_flag(along, [&](auto gated) {
            with_flag(out, [&](auto rectify) {
                with_flag(own, [&](auto wanted) {
                    for (index r = from; r < to; ++r) {
                        const index at = n * s.size() + r * row;
                        const Number total =
                            backward_row<decltype(gated)::value, decltype(rectify)::value, decltype(wanted)::value>(
                                up + at, x + at, out ? out + at : nullptr, across ? across[r] : 1, along,
                                gradient ? gradient + at : nullptr, residual_gradient ? residual_gradient + at : nullptr,
                                own, row);
                        if (across_gradient) across_gradient[n * rows + r] = total;
                    }
                });
            });
        });
    });
    if (!along_gradient || B == 1) return;
    for (index n = 0; n < s.samples; ++n)
        for (index i = 0; i < row; ++i) {
            Number all = 0;
            for (index b = 0; b < B; ++b) all += partial[(n * B + b) * row + i];
            along_gradient[n * row + i] = all;
        }
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
