// The C interface. One table of functions per instruction set; dispatch.cpp hands out the best this machine can run.
//
// dtype: 0 float32, 1 bfloat16, 2 float64. Statistics of ties and gradients of gates come in the number computed with
// (float32, or float64 for float64); everything else in dtype. Pointers that may be null are marked with ?.
#pragma once

#include <cstdint>

struct AttendoShape {
    std::int64_t samples, channels, height, width;
    std::int32_t dtype, channels_last, threads;
};

struct AttendoTable {
    void (*channel_stats)(const AttendoShape*, const void* x, void* mean, void* maximum, void* ties /*?*/);
    void (*channel_stats_backward)(const AttendoShape*, const void* mean_gradient, const void* maximum_gradient, const void* x,
                                   const void* maximum, const void* ties, void* gradient);
    void (*spatial_stats)(const AttendoShape*, const void* x, const void* gate /*?*/, std::int64_t gate_samples, void* stats,
                          void* ties /*?*/);
    void (*spatial_stats_backward)(const AttendoShape*, const void* stats_gradient, const void* x, const void* gate /*?*/,
                                   std::int64_t gate_samples, const void* stats, const void* ties, void* gradient,
                                   void* gate_gradient /*?*/);
    void (*recalibrate)(const AttendoShape*, const void* x, const void* channel /*?*/, std::int64_t channel_samples,
                        const void* spatial /*?*/, std::int64_t spatial_samples, const void* residual /*?*/,
                        std::int32_t relu, void* out);
    void (*recalibrate_backward)(const AttendoShape*, const void* up, const void* x, const void* channel /*?*/,
                                 std::int64_t channel_samples, const void* spatial /*?*/, std::int64_t spatial_samples,
                                 const void* out /*?*/, void* gradient /*?*/, void* channel_gradient /*?*/,
                                 void* spatial_gradient /*?*/, void* residual_gradient /*?*/);
    void (*attention)(const void* call);           // Attention of attention.h
    void (*attention_backward)(const void* call);  // AttentionBackward of attention_backward.h
    void (*grouped_conv)(const AttendoShape*, const void* x, const void* weight, std::int64_t outputs, std::int64_t groups,
                         std::int64_t kernel, std::int64_t stride, std::int64_t padding, void* out);
};
