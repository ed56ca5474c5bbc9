#include "scan.cuh"

KERNEL(scan_64, lc_scan_params, product_threads, 2, (scan<false>(p)))
KERNEL(scan_channels_64, lc_scan_params, product_threads, 2, (scan<true>(p)))
