// The host simulator: runs the kernels of cuda/kernels, compiled by a host
// compiler with LONGCTX_SIM, on threads of this process. This header is what a
// caller (a test, the simulated driver) sees; runtime.h is what kernels see.
#ifndef LONGCTX_SIM_H
#define LONGCTX_SIM_H

#ifdef __cplusplus
extern "C" {
#endif

// A kernel. Each takes exactly one struct by value.
struct sim_kernel {
	const char *name;
	void (*entry)(const void *params);
	long static_shared; // bytes; kernels of this library have none
	long param_bytes;
};

typedef struct {
	unsigned x, y, z;
} sim_dim3;

// sim_find is the kernel of a name, or 0. sim_kernel_at lists them; 0 past the
// last.
const struct sim_kernel *sim_find(const char *name);
const struct sim_kernel *sim_kernel_at(int i);

// sim_launch runs a grid to its end. It returns 0 or one of the codes below;
// what happened is in sim_error, of this thread.
int sim_launch(const struct sim_kernel *k, sim_dim3 grid, sim_dim3 block, long dynamic_shared, const void *params);

enum {
	SIM_OK = 0,
	SIM_INVALID = 1,   // impossible launch: block or shared memory too large, empty grid
	SIM_ADDRESS = 2,   // access outside every allocation, or misaligned
	SIM_SHARED = 3,    // access outside shared memory, or misaligned
	SIM_SYNC = 4,      // deadlock, or threads of a warp in different collectives
	SIM_RACE = 5,      // two threads met in shared memory with no barrier between
	SIM_ASSERT = 6     // a kernel called trap
};

const char *sim_error(void);

// sim_allow and sim_forbid say which memory kernels may touch. Before the first
// sim_allow they may touch any.
void sim_allow(const void *p, long bytes);
void sim_forbid(const void *p);

struct sim_options {
	unsigned long seed; // of the orders in which warps and lanes run; 0: ascending
	int threads;        // that run blocks; 0: one for each processor
	int race;           // look for accesses to shared memory with no barrier between
};

// sim_configure takes effect with the next launch. The first one reads
// LONGCTX_SIM_SEED, LONGCTX_SIM_THREADS and LONGCTX_SIM_RACE.
void sim_configure(const struct sim_options *o);

// sim_switches counts context switches of the last launch of this thread.
long sim_switches(void);

#ifdef __cplusplus
}
#endif
#endif
