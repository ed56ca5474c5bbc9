#include "roof.cuh"

KERNEL(roof_fma_256, lc_roof_params, roof_threads, 1, (roof_fma(p)))
KERNEL(roof_read_256, lc_roof_params, roof_threads, 1, (roof_read(p)))
