#include "loss.cuh"

KERNEL(loss_queries_64, lc_loss_params, product_threads, 2, (loss_queries(p)))
KERNEL(loss_keys_64, lc_loss_params, product_threads, 2, (loss_keys(p)))
