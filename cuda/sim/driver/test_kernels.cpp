// Kernels of the tests of package driver: what a driver must get right can be
// seen in what they store.
#include "../../kernels/prims.cuh"

struct fill_params {
	uint64_t out;
	int64_t n;
	float value;
	int32_t shared; // bytes of dynamic shared memory to touch
	char tail[104]; // much more than 8 bytes: all of it must arrive
	float last;
};

DEV void fill(const fill_params &p) {
	if (p.shared)
		store_shared((float *)(shared_memory() + p.shared - 4), p.value);
	for (int64_t i = block_index() * 32 + thread_index(); i < p.n; i += (int64_t)grid_size() * 32)
		store_global((float *)p.out + i, p.value + p.last);
}

KERNEL(test_fill_32, fill_params, 32, 1, (fill(p)))
