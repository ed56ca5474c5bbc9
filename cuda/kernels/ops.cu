#include "cache.cuh"
#include "merge.cuh"
#include "rotary.cuh"

enum { op_threads = 256 };

KERNEL(merge_states_128, lc_merge_params, merge_threads, 1, (merge_states(p)))
KERNEL(rotate_rows_256, lc_rotate_params, op_threads, 1, (rotate_rows(p, op_threads)))
KERNEL(append_rows_256, lc_append_params, op_threads, 1, (append_rows(p, op_threads)))
KERNEL(gather_rows_256, lc_gather_params, op_threads, 1, (gather_rows(p, op_threads)))
KERNEL(copy_pages_256, lc_copy_params, op_threads, 1, (copy_pages(p, op_threads)))
