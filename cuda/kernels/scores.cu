#include "scores.cuh"

KERNEL(key_scores_8, lc_key_scores_params, product_threads, 4, (key_scores<8>(p)))
KERNEL(key_scores_64, lc_key_scores_params, product_threads, 2, (key_scores<64>(p)))
KERNEL(code_scores_256, lc_code_scores_params, code_threads, 2, (code_scores(p)))
