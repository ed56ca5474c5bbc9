#include "pages.cuh"
#include "topk.cuh"

enum { page_threads = 256 };

KERNEL(page_bounds_256, lc_bounds_params, page_threads, 1, (page_bounds(p, page_threads)))
KERNEL(page_scores_256, lc_scores_params, scores_threads, 1, (page_scores(p)))
KERNEL(encode_keys_256, lc_encode_params, page_threads, 1, (encode_keys(p, page_threads)))
KERNEL(topk_rows_256, lc_topk_params, topk_threads, 2, (topk_rows(p)))
KERNEL(encode_values_256, lc_encode_params, page_threads, 1, (encode_values(p, page_threads)))
