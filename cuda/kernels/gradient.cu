#include "gradient.cuh"

KERNEL(start_gradients_128, lc_gradient_params, gradient_threads, 1, (start_gradients(p)))
KERNEL(query_gradients_64, lc_gradient_params, gradient_threads, 2, (query_gradients(p)))
KERNEL(key_gradients_64, lc_gradient_params, gradient_threads, 2, (key_gradients(p)))
KERNEL(column_stats_64, lc_gradient_params, gradient_threads, 2, (column_stats(p)))
