// What kernels see of the simulator: the machine that prims.cuh is written on.
//
// A thread of a block is a fiber. It runs until it meets a collective of its
// warp, a barrier or its end; then the next lane of the warp runs, and when no
// lane can, the next warp. So a warp goes as far as it can before any other
// moves, and what one forgets to wait for is not there yet. Options.seed
// permutes warps and lanes. Blocks are spread over threads of the system.
#ifndef LONGCTX_SIM_RUNTIME_H
#define LONGCTX_SIM_RUNTIME_H

#include <cstdint>
#include <cstring>
#include <vector>

#include "sim.h"

namespace sim {

enum { max_threads = 1024, max_warps = 32, named_barriers = 16 };

struct Warp {
	uint32_t all, alive, ready; // lanes: that were launched, that did not end, that can run
	uint32_t arrived;           // in the collective under way
	uint32_t epoch;             // __syncwarps so far
	const char *kind;           // of the collective
	int index;
	const void *in[32];
	void *out[32];
};

// Copy is a cp.async that has not landed.
struct Copy {
	void *to;
	const void *from;
	int bytes, filled; // bytes past filled are zeros
};

struct Fiber {
	void *sp;
	Warp *warp;
	uint32_t thread; // in its block
	int lane;
	const char *waits;
	std::vector<Copy> copies;
	std::vector<size_t> groups; // copies in each committed group
	size_t open;                // copies not committed
};

struct Barrier {
	int want, arrived;
	uint32_t waiting[max_warps];
};

// Word is who met a word of shared memory last.
struct Word {
	uint32_t write_epoch, read_epoch;
	uint32_t write_warp_epoch, read_warp_epoch;
	uint16_t writer, reader;
};

struct Block {
	sim_dim3 id, grid, dim;
	int threads, warps, alive;
	Fiber *fiber;
	Warp *warp;
	Barrier barrier[named_barriers];
	int order[max_warps], place; // warps as they run, and which one does
	uint32_t epoch;              // full barriers so far
	int any, result;             // of __syncthreads_or
	unsigned char *shared;
	long shared_bytes;
	Word *words; // 0: races are not looked for
	uint64_t random;
	bool descending; // lanes
	long switches;
	void *main;
	int code;
};

extern thread_local Fiber *self;
extern thread_local Block *block;

[[noreturn]] void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

// wait runs others until this fiber is ready again.
void wait(const char *what);

void barrier(int id, int threads, const char *kind);
int barrier_or(int predicate);

// collective lets lanes deposit in and out; the last one runs f for all.
template <class F> inline void collective(const char *kind, const void *in, void *out, F f) {
	Warp &w = *self->warp;
	if (w.arrived && w.kind != kind)
		fail(SIM_SYNC, "lane %d of warp %d calls %s while others are in %s", self->lane, w.index, kind, w.kind);
	w.kind = kind;
	w.in[self->lane] = in;
	w.out[self->lane] = out;
	w.arrived |= 1u << self->lane;
	if (w.arrived == w.all) {
		f(w);
		w.arrived = 0;
		w.ready = w.all;
		return;
	}
	w.ready &= ~(1u << self->lane);
	wait(kind);
}

void touch_slow(const void *p, long bytes);
struct Range {
	uintptr_t lo, hi;
};
extern thread_local Range recent[4];
extern thread_local bool guarded;

// global checks an access to global memory.
inline void global(const void *p, int bytes) {
	uintptr_t a = (uintptr_t)p;
	if (a & (bytes - 1))
		fail(SIM_ADDRESS, "access of %d bytes at %p is misaligned", bytes, p);
	if (!guarded)
		return;
	for (int i = 0; i < 4; i++)
		if (a >= recent[i].lo && a + bytes <= recent[i].hi)
			return;
	touch_slow(p, bytes);
}

void race(Word *w, int n, bool write);

// shared checks an access to shared memory.
inline void shared(const void *p, int bytes, bool write) {
	uintptr_t at = (uintptr_t)p - (uintptr_t)block->shared;
	if (at + bytes > (uintptr_t)block->shared_bytes || at & (bytes - 1))
		fail(SIM_SHARED, "access of %d bytes at offset %ld of %ld bytes of shared memory", bytes, (long)at, block->shared_bytes);
	if (block->words)
		race(block->words + at / 4, bytes < 4 ? 1 : bytes / 4, write);
}

// copy_async poisons its destination, which copy_wait overwrites.
void copy_async(void *to, const void *from, int bytes, int filled);
void copy_commit();
void copy_wait(int pending);

struct Registration {
	Registration(const sim_kernel *k);
};

} // namespace sim

#endif
