// What channels and positions contribute to the gradient of each element.
#pragma once

#include "spatial_stats.h"

namespace attendo {
namespace ATTENDO_ISA {

// What a channel contributes to the gradient of an element. gate: its factor on the map. The rest makes the gradient of
// the map from that of the gated map: times factor, plus flat, plus slope for every step away from centre, plus share
// for each at the maximum, top.
template <class T, bool ALONG>
struct ChannelFactors {
    Factor<T, ALONG> gate, factor, flat, share, top, slope, centre;
    ChannelFactors from(index i) const {
        return {gate.from(i), factor.from(i), flat.from(i), share.from(i), top.from(i), slope.from(i), centre.from(i)};
    }
};
// What a position contributes: its gate, and the gradient through the statistics that it came from.
template <class T, bool ALONG>
struct PositionFactors {
    Factor<T, ALONG> gate, flat, share, top;
    PositionFactors from(index i) const { return {gate.from(i), flat.from(i), share.from(i), top.from(i)}; }
};

// The gradient of the map once it is multiplied by the channel gate.
template <class T, bool SPATIAL, class K, class X, bool A, bool B>
inline X gated_gradient(K* kind, X up, X x, const ChannelFactors<T, A>& channel, const PositionFactors<T, B>& position, index i) {
    if constexpr (SPATIAL)
        return up * position.gate.at(kind, i) + position.flat.at(kind, i) +
               at(product<T>(x, channel.gate.at(kind, i)), position.top.at(kind, i)) * position.share.at(kind, i);
    else
        return up;
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
