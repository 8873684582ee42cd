// What is to be known of the spatial gate before the other gradients: its own, and that of the blend.
#pragma once

#include "rows.h"

namespace attendo {
namespace ATTENDO_ISA {

// A step of AttentionBackwardSteps: sums over the channels of each position, the gate's without the blend's share in it.
template <class T, bool LAST, class Steps>
void spatial_gradient(const Steps& steps, index first, index count) {
    using Number = NumberOf<T>;
    using Vector = VectorOf<T>;
    const auto& g = steps.g;
    const index C = steps.C, P = steps.P, tile = least(TILE, LAST ? steps.strip : P), tiles = ceil_of(P, tile);
    with_flag(g.blend_gradient, [&](auto blended) {
        constexpr bool BLENDED = decltype(blended)::value;
#pragma omp for schedule(static)
        for (index task = 0; task < count * tiles; ++task) {
            const index n = task / tiles, begin = task % tiles * tile, width = least(tile, P - begin);
            const index at = (first + n) * P + begin;
            Number* const sums = steps.to(g.spatial_gradient) + at;
            Number plain[TILE];  // sums of what no gate has a part in
            for (index p = 0; p < width; ++p) sums[p] = 0;
            for (index p = 0; BLENDED && p < width; ++p) plain[p] = 0;
            for (index r = LAST ? begin : 0; r < (LAST ? begin + width : C); ++r) {
                const auto xs = steps.source(first + n).row(r * steps.length, r);
                const auto gate = steps.channel_of(n, r).gate;
                Vector sum[2] = {};
                Number rest[2] = {};
                steps.each(first + n, r, LAST ? 0 : begin, LAST ? C : width, [&](auto* kind, auto u, index i) {
                    const auto v = u * xs.at(kind, i);
                    const decltype(v) gated = v * gate.at(kind, i);
                    if constexpr (!LAST) {
                        Number *const here = sums + i - begin, *const beside = plain + i - begin;
                        put(here, got(kind, here) + gated);
                        if (BLENDED) put(beside, got(kind, beside) + v);
                    } else if constexpr (sizeof v == sizeof(Vector)) {
                        sum[0] += gated;
                        if (BLENDED) sum[1] += v;
                    } else {
                        rest[0] += gated;
                        if (BLENDED) rest[1] += v;
                    }
                });
                if (LAST) sums[r - begin] = sum_of<T>(sum[0]) + rest[0];
                if (LAST && BLENDED) plain[r - begin] = sum_of<T>(sum[1]) + rest[1];
            }
            for (index p = 0; BLENDED && p < width; ++p)
                steps.to(g.blend_gradient)[at + p] = sums[p] * Store<T>::get(steps.in(g.spatial)[at + p]) - plain[p];
        }
    });
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
