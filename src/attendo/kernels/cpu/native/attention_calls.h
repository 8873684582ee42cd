// What the functions for whole attentions are told, as attendo.kernels.cpu.packing packs it. Null pointers: a part that is
// not there, a gradient that is not asked for.
#pragma once

#include "vectors.h"

namespace attendo {
namespace ATTENDO_ISA {

struct Attention {
    index samples, channels, height, width, dtype, channels_last, threads, relu;
    const void *x, *residual;
    void* out;
    const void *fc1, *fc1_bias, *fc2, *fc2_bias, *conv;  // of ChannelGate
    const void* spatial;                                 // (2, spatial_kernel, spatial_kernel)
    const void *norm_weight, *norm_bias, *norm_mean, *norm_var;  // one number each
    double norm_eps;
    index hidden, kernel_size, spatial_kernel;
    index mean, maximum;  // which statistics the channel half sees
    index maximum_first;  // in the spatial convolution's input
    // The norm that comes before all this, where it is still to be done: C numbers each. Without mean and variance, those
    // of the batch count; `norm` takes (4, C) numbers, scale, shift, mean and variance, and `means` (N, C), of x.
    const void *before_weight, *before_bias, *before_mean, *before_var;
    double before_eps;
    index before;
    void *norm, *means;
    // What the backward pass needs, in the number computed with. Where there is `stats`, the call ends with them.
    void *pooled, *raw, *gate;  // as in ChannelGate
    void *stats, *ties;         // of the positions: (N, 2, P) in dtype, mean first, and (N, P)
    // The spatial gate (N, P), where it is known: then `gate` and `norm` are too, and only the last step remains.
    const void* known;
    const void* blend;  // one number: how much of the recalibrated map to take, the rest being the map itself
};

// "Kept" is what the forward pass left, "number" the number computed with.
struct AttentionBackward {
    index samples, channels, height, width, dtype, channels_last, threads;
    const void *up, *x, *out;                 // out: the result, where it was rectified
    const void *fc1, *fc2, *conv;             // of ChannelGate
    const void *norm, *means;                 // kept, of the norm before: it was that of the batch
    const void *pooled, *raw, *gate;          // kept
    const void *stats, *ties;                 // kept
    const void *spatial, *stats_gradient;     // the spatial gate (N, P), and what the statistics it came from hand back
    void *gradient, *residual_gradient;       // maps
    void *norm_gradient;                      // (2, C) numbers: weight, bias
    void *logits_gradient, *raw_gradient, *conv_gradient;  // as in ChannelGate
    void* spatial_gradient;  // (N, P) numbers; where it is asked for, the call ends with it and residual_gradient
    double before_eps;
    index hidden, kernel_size, mean, maximum;
    index masked;  // residual_gradient has been written
    const void* blend;     // as in Attention
    void* blend_gradient;  // numbers whose sum is its gradient: (N, P) with spatial_gradient, else (N, C)
};

}  // namespace ATTENDO_ISA
}  // namespace attendo
