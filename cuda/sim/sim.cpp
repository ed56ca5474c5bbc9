#include "runtime.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>

namespace sim {

thread_local Fiber *self;
thread_local Block *block;
thread_local Range recent[4];
thread_local bool guarded;

namespace {

thread_local std::string error_text;
thread_local long switches;

const long stack_bytes = 64 << 10;
const long max_shared = 227 << 10; // of a block, as on compute capability 9.0

// sim_jump saves the registers that a call must keep, and the stack pointer in
// *from, and goes on where to was saved.
extern "C" void sim_jump(void **from, void *to);

#if defined(__x86_64__)
asm(R"(
.text
.globl sim_jump
.hidden sim_jump
.type sim_jump,@function
sim_jump:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
.size sim_jump,.-sim_jump
)");
const int saved_words = 6;
const int return_word = 6; // where ret finds its address
#elif defined(__aarch64__)
asm(R"(
.text
.globl sim_jump
.hidden sim_jump
.type sim_jump,%function
sim_jump:
	sub sp, sp, #160
	stp x19, x20, [sp]
	stp x21, x22, [sp, #16]
	stp x23, x24, [sp, #32]
	stp x25, x26, [sp, #48]
	stp x27, x28, [sp, #64]
	stp x29, x30, [sp, #80]
	stp d8, d9, [sp, #96]
	stp d10, d11, [sp, #112]
	stp d12, d13, [sp, #128]
	stp d14, d15, [sp, #144]
	mov x9, sp
	str x9, [x0]
	mov sp, x1
	ldp x19, x20, [sp]
	ldp x21, x22, [sp, #16]
	ldp x23, x24, [sp, #32]
	ldp x25, x26, [sp, #48]
	ldp x27, x28, [sp, #64]
	ldp x29, x30, [sp, #80]
	ldp d8, d9, [sp, #96]
	ldp d10, d11, [sp, #112]
	ldp d12, d13, [sp, #128]
	ldp d14, d15, [sp, #144]
	add sp, sp, #160
	ret
.size sim_jump,.-sim_jump
)");
const int saved_words = 20;
const int return_word = 11; // x30
#else
#error "the simulator has a context switch for x86-64 and arm64"
#endif

struct Allocations {
	std::map<uintptr_t, uintptr_t> ranges; // first byte, byte past the last
};

std::mutex allocations_mutex;
std::shared_ptr<const Allocations> allocations;
thread_local std::shared_ptr<const Allocations> visible;

uint64_t next_random() { // splitmix64
	uint64_t z = (block->random += 0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

// shuffle chooses a new order of warps and lanes.
void shuffle() {
	Block &b = *block;
	if (!b.random)
		return;
	for (int i = b.warps - 1; i > 0; i--)
		std::swap(b.order[i], b.order[next_random() % (i + 1)]);
	b.descending = next_random() & 1;
}

void jump(Fiber *to) {
	Fiber *me = self;
	if (to == me)
		return;
	block->switches++;
	self = to;
	sim_jump(&me->sp, to->sp);
}

[[noreturn]] void leave() {
	void *unused;
	sim_jump(&unused, block->main);
	abort();
}

[[noreturn]] void deadlock() {
	std::string text = "deadlock:";
	for (int w = 0; w < block->warps; w++)
		for (uint32_t lanes = block->warp[w].alive; lanes;) {
			const char *what = block->fiber[w * 32 + __builtin_ctz(lanes)].waits;
			uint32_t same = 0;
			for (int l = 0; l < 32; l++)
				if (lanes >> l & 1 && block->fiber[w * 32 + l].waits == what)
					same |= 1u << l;
			char part[128];
			snprintf(part, sizeof part, " lanes %08x of warp %d in %s;", same, w, what ? what : "?");
			text += part;
			lanes &= ~same;
		}
	fail(SIM_SYNC, "%s", text.c_str());
}

// next is a fiber that can run: of warp w if it has one, after lane.
Fiber *next(Warp *w, int lane) {
	Block &b = *block;
	if (!w->ready) {
		int k = 0;
		do {
			if (++k > b.warps)
				deadlock();
			b.place = b.place + 1 >= b.warps ? 0 : b.place + 1;
			w = &b.warp[b.order[b.place]];
		} while (!w->ready);
		lane = b.descending ? 32 : -1;
	}
	if (b.descending) {
		uint32_t below = lane > 0 ? w->ready & (0xffffffffu >> (32 - lane)) : 0;
		return &b.fiber[w->index * 32 + 31 - __builtin_clz(below ? below : w->ready)];
	}
	uint32_t above = lane < 31 ? w->ready & (0xfffffffeu << lane) : 0;
	if (lane < 0)
		above = w->ready;
	return &b.fiber[w->index * 32 + __builtin_ctz(above ? above : w->ready)];
}

void release(Barrier &bar) {
	Block &b = *block;
	for (int w = 0; w < b.warps; w++) {
		b.warp[w].ready |= bar.waiting[w];
		bar.waiting[w] = 0;
	}
	bar.arrived = 0;
	b.result = b.any;
	b.any = 0;
	b.epoch++;
	shuffle();
}

thread_local const sim_kernel *running;
thread_local const void *running_params;

extern "C" void sim_run_fiber() {
	running->entry(running_params);
	Fiber *me = self;
	Block &b = *block;
	Warp &w = *me->warp;
	if (!me->copies.empty())
		fail(SIM_SYNC, "thread %u ends with copies that nobody waited for", me->thread);
	w.alive &= ~(1u << me->lane);
	w.ready &= ~(1u << me->lane);
	if (--b.alive == 0)
		leave();
	if (Barrier &bar = b.barrier[0]; bar.arrived && bar.arrived == b.alive)
		release(bar);
	Fiber *to = next(&w, me->lane);
	self = to;
	void *unused;
	sim_jump(&unused, to->sp);
	abort();
}

// Engine is what a thread of the system needs to run blocks.
struct Engine {
	Block b;
	Fiber fiber[max_threads];
	Warp warp[max_warps];
	unsigned char *stacks = nullptr;
	unsigned char *shared = nullptr;
	std::vector<Word> words;

	Engine() {
		stacks = (unsigned char *)mmap(nullptr, stack_bytes * max_threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		shared = (unsigned char *)aligned_alloc(4096, (max_shared + 4095) & ~4095l);
		if (stacks == MAP_FAILED || !shared)
			abort();
	}

	void run(const sim_kernel *k, const void *params, long index, sim_dim3 grid, sim_dim3 dim, long bytes, const sim_options &o) {
		b = Block{};
		b.id = {(unsigned)(index % grid.x), (unsigned)(index / grid.x % grid.y), (unsigned)(index / grid.x / grid.y)};
		b.grid = grid, b.dim = dim;
		b.threads = b.alive = dim.x * dim.y * dim.z;
		b.warps = (b.threads + 31) / 32;
		b.fiber = fiber, b.warp = warp;
		b.shared = shared, b.shared_bytes = bytes;
		b.epoch = 1;
		if (o.race) {
			words.assign(bytes / 4 + 1, Word{});
			b.words = words.data();
		}
		memset(shared, 0xff, bytes);
		for (int w = 0; w < b.warps; w++) {
			int lanes = std::min(32, b.threads - 32 * w);
			uint32_t all = 0xffffffffu >> (32 - lanes);
			warp[w] = Warp{};
			warp[w].all = warp[w].alive = warp[w].ready = all;
			warp[w].index = w;
			warp[w].epoch = 1;
			b.order[w] = w;
		}
		for (int t = 0; t < b.threads; t++) {
			Fiber &f = fiber[t];
			f.warp = &warp[t / 32], f.lane = t % 32, f.thread = t, f.waits = "start";
			f.copies.clear(), f.groups.clear(), f.open = 0;
			uint64_t *sp = (uint64_t *)(stacks + stack_bytes * (t + 1)) - 4 - saved_words;
			memset(sp, 0, 8 * (saved_words + 4));
			sp[return_word] = (uint64_t)sim_run_fiber;
			f.sp = sp;
		}
		block = &b;
		running = k, running_params = params;
		b.random = o.seed ? o.seed * 0x9e3779b97f4a7c15 + index : 0;
		shuffle();
		b.place = 0;
		self = nullptr;
		Fiber *first = next(&warp[b.order[0]], b.descending ? 32 : -1);
		self = first;
		sim_jump(&b.main, first->sp);
	}
};

std::mutex engines_mutex;
std::vector<std::unique_ptr<Engine>> engines;

std::unique_ptr<Engine> take_engine() {
	std::lock_guard<std::mutex> lock(engines_mutex);
	if (engines.empty())
		return std::unique_ptr<Engine>(new Engine);
	auto e = std::move(engines.back());
	engines.pop_back();
	return e;
}

void give_engine(std::unique_ptr<Engine> e) {
	std::lock_guard<std::mutex> lock(engines_mutex);
	engines.push_back(std::move(e));
}

std::vector<const sim_kernel *> &kernels() {
	static std::vector<const sim_kernel *> all;
	return all;
}

std::mutex options_mutex;
sim_options options;
bool configured;

sim_options read_options() {
	std::lock_guard<std::mutex> lock(options_mutex);
	if (!configured) {
		auto number = [](const char *name) {
			const char *s = getenv(name);
			return s ? strtoul(s, nullptr, 10) : 0ul;
		};
		options = {number("LONGCTX_SIM_SEED"), (int)number("LONGCTX_SIM_THREADS"), (int)number("LONGCTX_SIM_RACE")};
		configured = true;
	}
	return options;
}

} // namespace

void fail(int code, const char *format, ...) {
	char text[1024];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	Block &b = *block;
	char where[256];
	snprintf(where, sizeof where, "%s: block (%u,%u,%u), thread %u: ", running->name, b.id.x, b.id.y, b.id.z, self ? self->thread : 0);
	error_text = std::string(where) + text;
	b.code = code;
	leave();
}

void wait(const char *what) {
	self->waits = what;
	jump(next(self->warp, self->lane));
}

void barrier(int id, int threads, const char *kind) {
	Block &b = *block;
	if (id < 0 || id >= named_barriers)
		fail(SIM_SYNC, "barrier %d, there are %d", id, named_barriers);
	if (threads % 32)
		fail(SIM_SYNC, "barrier %d of %d threads, want whole warps", id, threads);
	Barrier &bar = b.barrier[id];
	if (bar.arrived && bar.want != threads)
		fail(SIM_SYNC, "barrier %d of %d threads, others wait for %d", id, threads, bar.want);
	if (self->warp->arrived)
		fail(SIM_SYNC, "barrier %d while lanes %08x of warp %d are in %s", id, self->warp->arrived, self->warp->index, self->warp->kind);
	bar.want = threads;
	if (++bar.arrived == (threads ? threads : b.alive)) {
		release(bar);
		return;
	}
	uint32_t bit = 1u << self->lane;
	bar.waiting[self->warp->index] |= bit;
	self->warp->ready &= ~bit;
	wait(kind);
}

int barrier_or(int predicate) {
	block->any |= predicate != 0;
	barrier(0, 0, "__syncthreads_or");
	return block->result;
}

void touch_slow(const void *p, long bytes) {
	uintptr_t a = (uintptr_t)p;
	auto &m = visible->ranges;
	auto i = m.upper_bound(a);
	if (i == m.begin() || a + bytes > std::prev(i)->second) {
		if (i != m.begin() && a < std::prev(i)->second + 4096) {
			--i;
			fail(SIM_ADDRESS, "access of %ld bytes at %p: byte %ld of an allocation of %ld", bytes, p, (long)(a - i->first), (long)(i->second - i->first));
		}
		fail(SIM_ADDRESS, "access of %ld bytes at %p, which is in no allocation", bytes, p);
	}
	--i;
	for (int k = 3; k > 0; k--)
		recent[k] = recent[k - 1];
	recent[0] = {i->first, i->second};
}

void race(Word *w, int n, bool write) {
	const uint16_t many = 0x8000; // several lanes of the warp of thread reader & 0x7fff
	const uint16_t all = 0xffff;  // of several warps
	Block &b = *block;
	uint16_t me = (uint16_t)self->thread;
	uint32_t warp_epoch = self->warp->epoch;
	for (int i = 0; i < n; i++, w++) {
		if (w->write_epoch == b.epoch && w->writer != me && (w->writer / 32 != me / 32 || w->write_warp_epoch == warp_epoch))
			fail(SIM_RACE, "%s of word %ld of shared memory that thread %d wrote, and no barrier between", write ? "write" : "read", (long)(w - b.words), w->writer);
		if (write) {
			if (w->read_epoch == b.epoch && w->reader != me &&
			    (w->reader == all || (w->reader & ~many) / 32 != me / 32 || w->read_warp_epoch == warp_epoch))
				fail(SIM_RACE, "write of word %ld of shared memory that %s read, and no barrier between", (long)(w - b.words),
					w->reader == all ? "several warps" : w->reader & many ? "several lanes" : "another thread");
			w->write_epoch = b.epoch, w->writer = me, w->write_warp_epoch = warp_epoch;
			continue;
		}
		if (w->read_epoch != b.epoch) {
			w->reader = me;
		} else if (w->reader != me && w->reader != all) {
			if ((w->reader & ~many) / 32 != me / 32)
				w->reader = all;
			else if (w->read_warp_epoch == warp_epoch)
				w->reader |= many;
			else
				w->reader = me;
		}
		w->read_epoch = b.epoch, w->read_warp_epoch = warp_epoch;
	}
}

void copy_async(void *to, const void *from, int bytes, int filled) {
	shared(to, bytes, true);
	if (filled)
		global(from, bytes);
	memset(to, 0xff, bytes);
	self->copies.push_back({to, from, bytes, filled});
	self->open++;
}

void copy_commit() {
	self->groups.push_back(self->open);
	self->open = 0;
}

void copy_wait(int pending) {
	Fiber &f = *self;
	size_t done = 0;
	while ((int)f.groups.size() > pending) {
		for (size_t i = 0; i < f.groups[0]; i++) {
			Copy &c = f.copies[done + i];
			memcpy(c.to, c.from, c.filled);
			memset((char *)c.to + c.filled, 0, c.bytes - c.filled);
		}
		done += f.groups[0];
		f.groups.erase(f.groups.begin());
	}
	f.copies.erase(f.copies.begin(), f.copies.begin() + done);
}

Registration::Registration(const sim_kernel *k) { kernels().push_back(k); }

} // namespace sim

using namespace sim;

extern "C" {

const sim_kernel *sim_kernel_at(int i) {
	return i >= 0 && i < (int)kernels().size() ? kernels()[i] : nullptr;
}

const sim_kernel *sim_find(const char *name) {
	for (auto k : kernels())
		if (!strcmp(k->name, name))
			return k;
	return nullptr;
}

const char *sim_error(void) { return error_text.c_str(); }

long sim_switches(void) { return switches; }

void sim_configure(const sim_options *o) {
	std::lock_guard<std::mutex> lock(options_mutex);
	options = *o;
	configured = true;
}

void sim_allow(const void *p, long bytes) {
	std::lock_guard<std::mutex> lock(allocations_mutex);
	auto a = std::make_shared<Allocations>(allocations ? *allocations : Allocations{});
	a->ranges[(uintptr_t)p] = (uintptr_t)p + bytes;
	allocations = a;
}

void sim_forbid(const void *p) {
	std::lock_guard<std::mutex> lock(allocations_mutex);
	auto a = std::make_shared<Allocations>(allocations ? *allocations : Allocations{});
	a->ranges.erase((uintptr_t)p);
	allocations = a;
}

int sim_launch(const sim_kernel *k, sim_dim3 grid, sim_dim3 dim, long dynamic_shared, const void *params) {
	char text[256];
	long threads = (long)dim.x * dim.y * dim.z, blocks = (long)grid.x * grid.y * grid.z;
	long bytes = dynamic_shared + k->static_shared;
	if (threads < 1 || threads > max_threads || blocks < 1 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff || bytes < 0 || bytes > max_shared) {
		snprintf(text, sizeof text, "%s: grid %u,%u,%u of blocks of %ld threads with %ld bytes of shared memory, want blocks, 1 to %d threads and at most %ld bytes",
			k->name, grid.x, grid.y, grid.z, threads, bytes, max_threads, max_shared);
		error_text = text;
		return SIM_INVALID;
	}
	sim_options o = read_options();
	std::shared_ptr<const Allocations> memory;
	{
		std::lock_guard<std::mutex> lock(allocations_mutex);
		memory = allocations;
	}
	// The parameters are those of the call, aligned as on the device.
	std::vector<uint64_t> copy((k->param_bytes + 7) / 8);
	memcpy(copy.data(), params, k->param_bytes);

	std::atomic<long> taken{0}, count{0};
	std::mutex mutex;
	int code = SIM_OK;
	std::string first;
	auto work = [&] {
		auto e = take_engine();
		visible = memory;
		guarded = memory != nullptr;
		memset(recent, 0, sizeof recent);
		for (long i; (i = taken++) < blocks;) {
			e->run(k, copy.data(), i, grid, dim, bytes, o);
			count += e->b.switches;
			if (e->b.code) {
				std::lock_guard<std::mutex> lock(mutex);
				if (!code)
					code = e->b.code, first = error_text;
				taken = blocks;
			}
		}
		visible.reset();
		block = nullptr;
		give_engine(std::move(e));
	};
	long n = o.threads > 0 ? o.threads : std::max(1u, std::thread::hardware_concurrency());
	std::vector<std::thread> helpers;
	for (long i = 1; i < n && i < blocks; i++)
		helpers.emplace_back(work);
	work();
	for (auto &t : helpers)
		t.join();
	switches = count;
	if (code)
		error_text = first;
	return code;
}

} // extern "C"
