"""The primitives in Triton, for CUDA and ROCm devices; imported when the first tensor from there comes."""
