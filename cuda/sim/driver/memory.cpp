// Memory of the simulated device. Fresh memory is NaN in every type; it ends at a
// page that nobody may touch.
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"

using namespace driver;

namespace {

const size_t page = 4096, align = 256, granularity = 2 << 20;
const unsigned char poison = 0xff;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// map_memory gives bytes that end, but for their alignment, at a page without
// access, and begin after one.
uint64_t map_memory(size_t bytes, size_t *mapped) {
	size_t body = round_up(round_up(bytes, align), page);
	*mapped = body + 2 * page;
	void *m = mmap(nullptr, *mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m == MAP_FAILED)
		return 0;
	mprotect((char *)m + page, body, PROT_READ | PROT_WRITE);
	memset((char *)m + page, poison, body);
	return (uint64_t)m + page + body - round_up(bytes, align);
}

// overrun says whether something was written between the end of an allocation
// and its guard page.
bool overrun(uint64_t p, size_t bytes) {
	for (size_t i = bytes; i < round_up(bytes, align); i++)
		if (((unsigned char *)p)[i] != poison)
			return true;
	return false;
}

void unmap(uint64_t p, const Allocation &a) {
	munmap((void *)((p & ~(page - 1)) - page), a.mapped);
}

int take(size_t bytes, uint64_t *p, Kind kind, Pool *pool) {
	if (!bytes)
		return say(invalid_value, "an allocation of 0 bytes");
	if (bytes > state.memory || state.used + bytes > state.memory)
		return out_of_memory;
	Allocation a;
	a.bytes = bytes;
	a.kind = kind;
	a.pool = pool;
	a.live = kind == plain;
	*p = map_memory(bytes, &a.mapped);
	if (!*p)
		return out_of_memory;
	state.used += bytes;
	state.allocations[*p] = a;
	if (a.live)
		sim_allow((void *)*p, (long)bytes);
	return success;
}

} // namespace

namespace driver {

static const Allocation *allocation_at(uint64_t p, uint64_t *base) {
	auto i = state.allocations.upper_bound(p);
	if (i == state.allocations.begin())
		return nullptr;
	--i;
	*base = i->first;
	return p < i->first + i->second.bytes ? &i->second : nullptr;
}

static Reservation *reservation_at(uint64_t p, uint64_t *base) {
	auto i = state.reservations.upper_bound(p);
	if (i == state.reservations.begin())
		return nullptr;
	--i;
	*base = i->first;
	return p < i->first + i->second.bytes ? &i->second : nullptr;
}

bool any_device(uint64_t p) {
	uint64_t base;
	return allocation_at(p, &base) || reservation_at(p, &base);
}

bool device_range(uint64_t p, size_t n) {
	uint64_t base;
	if (const Allocation *a = allocation_at(p, &base))
		return a->live && p + n <= base + a->bytes;
	if (Reservation *r = reservation_at(p, &base)) {
		uint64_t end = p + n;
		while (p < end) {
			auto i = r->maps.upper_bound(p);
			if (i == r->maps.begin())
				return false;
			--i;
			if (p >= i->first + i->second.bytes || !i->second.allowed)
				return false;
			p = i->first + i->second.bytes;
		}
		return true;
	}
	return false;
}

bool pinned_range(const void *p, size_t n) {
	auto i = state.pinned.upper_bound((uint64_t)p);
	if (i == state.pinned.begin())
		return false;
	--i;
	return (uint64_t)p + n <= i->first + i->second;
}

int free_allocation(uint64_t p) {
	auto i = state.allocations.find(p);
	if (i == state.allocations.end())
		return say(invalid_value, "%#lx is given back, which is no allocation, or no more", (long)p);
	bool bad = overrun(p, i->second.bytes);
	if (i->second.live)
		sim_forbid((void *)p);
	unmap(p, i->second);
	state.used -= i->second.bytes;
	state.allocations.erase(i);
	return bad ? lose(illegal_address, "something wrote beyond the end of an allocation") : success;
}

void forget_all() {
	for (auto *set : {&state.graphs, &state.execs}) {
		for (Graph *g : *set)
			delete g;
		set->clear();
	}
	for (Module *m : state.modules)
		delete m;
	for (Function *f : state.functions)
		delete f;
	for (Event *v : state.events)
		delete v;
	for (Stream *s : state.streams)
		delete s;
	for (Pool *p : state.pools)
		delete p;
	state.modules.clear(), state.functions.clear(), state.events.clear(), state.streams.clear(), state.pools.clear();
	default_stream()->queue.clear();
	for (auto &a : state.allocations) {
		if (a.second.live)
			sim_forbid((void *)a.first);
		unmap(a.first, a.second);
	}
	for (auto &h : state.pinned)
		munmap((void *)h.first, round_up(h.second, page));
	for (auto &r : state.reservations) {
		for (auto &m : r.second.maps)
			if (m.second.allowed)
				sim_forbid((void *)m.first);
		munmap((void *)r.first, r.second.bytes);
	}
	for (Physical *m : state.physicals) {
		close(m->fd);
		delete m;
	}
	state.allocations.clear(), state.pinned.clear(), state.reservations.clear(), state.physicals.clear();
	state.used = state.host_used = 0;
}

} // namespace driver

CUDA_API int cuMemGetInfo_v2(size_t *free, size_t *total) {
	ENTER(Call::context)
	*free = state.memory - state.used;
	*total = state.memory;
	return success;
}

CUDA_API int cuMemAlloc_v2(uint64_t *p, size_t bytes) {
	ENTER(Call::context)
	return take(bytes, p, plain, nullptr);
}

CUDA_API int cuMemFree_v2(uint64_t p) {
	ENTER(Call::context, false)
	if (!p)
		return success;
	int e = drain_all();
	auto i = state.allocations.find(p);
	if (i != state.allocations.end() && i->second.kind == pooled)
		return say(invalid_value, "memory of a pool is given back as if it were none");
	return e ? e : free_allocation(p);
}

CUDA_API int cuMemHostAlloc(void **p, size_t bytes, unsigned) {
	ENTER(Call::context)
	if (!bytes)
		return invalid_value;
	void *m = mmap(nullptr, round_up(bytes, page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m == MAP_FAILED)
		return out_of_memory;
	memset(m, poison, bytes);
	*p = m;
	state.pinned[(uint64_t)m] = bytes;
	state.host_used += bytes;
	return success;
}

CUDA_API int cuMemFreeHost(void *p) {
	ENTER(Call::context, false)
	auto i = state.pinned.find((uint64_t)p);
	if (i == state.pinned.end())
		return say(invalid_value, "%p is given back, which is no pinned memory, or no more", p);
	int e = drain_all();
	munmap(p, round_up(i->second, page));
	state.host_used -= i->second;
	state.pinned.erase(i);
	return e;
}

struct PoolProps {
	int type, handles, location_type, location;
};

CUDA_API int cuMemPoolCreate(void **pool, const PoolProps *props) {
	ENTER(Call::context)
	if (props->type != 1 || props->location_type != 1 || props->location != 0)
		return say(invalid_value, "properties of a pool");
	Pool *p = new Pool;
	state.pools.insert(p);
	*pool = p;
	return success;
}

CUDA_API int cuMemPoolDestroy(void *h) {
	ENTER(Call::context, false)
	Pool *p = (Pool *)h;
	if (!state.pools.count(p))
		return say(invalid_value, "%p is no pool", h);
	int e = drain_all();
	for (auto &a : state.allocations)
		if (a.second.pool == p)
			return say(invalid_value, "a pool is given back, of which %zu bytes are not", a.second.bytes);
	state.pools.erase(p);
	delete p;
	return e;
}

CUDA_API int cuMemPoolSetAttribute(void *h, int attribute, void *value) {
	ENTER(Call::context)
	Pool *p = (Pool *)h;
	if (!state.pools.count(p) || attribute != 4)
		return say(invalid_value, "attribute %d of pool %p", attribute, h);
	p->threshold = *(uint64_t *)value;
	return success;
}

CUDA_API int cuMemPoolTrimTo(void *h, size_t) {
	ENTER(Call::context)
	return state.pools.count((Pool *)h) ? success : say(invalid_value, "%p is no pool", h);
}

CUDA_API int cuMemAllocFromPoolAsync(uint64_t *out, size_t bytes, void *h, void *stream) {
	ENTER(Call::context)
	Stream *s = stream_of(stream);
	if (!s)
		return invalid_handle;
	if (!state.pools.count((Pool *)h))
		return say(invalid_value, "%p is no pool", h);
	if (s->capture)
		return say(not_supported, "memory of a pool is taken in a capture");
	uint64_t p;
	if (int e = take(bytes, &p, pooled, (Pool *)h))
		return e;
	*out = p;
	// Work of other streams may use it only after this op.
	return put(s, {[p] {
		auto i = state.allocations.find(p);
		if (i != state.allocations.end()) {
			i->second.live = true;
			sim_allow((void *)p, (long)i->second.bytes);
		}
		return 0;
	}});
}

CUDA_API int cuMemFreeAsync(uint64_t p, void *stream) {
	ENTER(Call::context, false)
	Stream *s = stream_of(stream);
	if (!s)
		return invalid_handle;
	auto i = state.allocations.find(p);
	if (i == state.allocations.end() || i->second.freeing || i->second.kind != pooled)
		return say(invalid_value, "%#lx is given back, which is no memory of a pool, or no more", (long)p);
	if (s->capture)
		return say(not_supported, "memory of a pool is given back in a capture");
	i->second.freeing = true;
	return put(s, {[p] { return free_allocation(p); }});
}

// Virtual memory.

struct MemoryProp {
	int type, handles, location_type, location;
};

static bool bad_prop(const MemoryProp *p) { return p->type != 1 || p->location_type != 1 || p->location != 0; }

CUDA_API int cuMemGetAllocationGranularity(size_t *n, const MemoryProp *prop, int) {
	ENTER(Call::context)
	if (bad_prop(prop))
		return say(invalid_value, "properties of memory");
	*n = granularity;
	return success;
}

CUDA_API int cuMemAddressReserve(uint64_t *p, size_t bytes, size_t, uint64_t, unsigned long long flags) {
	ENTER(Call::context)
	if (!bytes || bytes % granularity || flags)
		return say(invalid_value, "%zu bytes of addresses, want multiples of %zu", bytes, granularity);
	// Twice as much, to cut an aligned piece out of.
	size_t all = bytes + granularity;
	char *m = (char *)mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m == MAP_FAILED)
		return out_of_memory;
	char *at = (char *)round_up((size_t)m, granularity);
	if (at > m)
		munmap(m, (size_t)(at - m));
	if (at + bytes < m + all)
		munmap(at + bytes, (size_t)(m + all - at - bytes));
	*p = (uint64_t)at;
	state.reservations[*p].bytes = bytes;
	return success;
}

CUDA_API int cuMemAddressFree(uint64_t p, size_t bytes) {
	ENTER(Call::context, false)
	auto i = state.reservations.find(p);
	if (i == state.reservations.end() || i->second.bytes != bytes || !i->second.maps.empty())
		return say(invalid_value, "%#lx, %zu bytes, is no reservation, or memory is mapped there", (long)p, bytes);
	munmap((void *)p, bytes);
	state.reservations.erase(i);
	return success;
}

CUDA_API int cuMemCreate(unsigned long long *h, size_t bytes, const MemoryProp *prop, unsigned long long flags) {
	ENTER(Call::context)
	if (bad_prop(prop) || !bytes || bytes % granularity || flags)
		return say(invalid_value, "physical memory of %zu bytes, want multiples of %zu", bytes, granularity);
	if (bytes > state.memory || state.used + bytes > state.memory)
		return out_of_memory;
	Physical *m = new Physical;
	m->bytes = bytes;
	m->fd = memfd_create("longctx", 0);
	void *at = MAP_FAILED;
	if (m->fd >= 0 && !ftruncate(m->fd, (off_t)bytes))
		at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	if (at == MAP_FAILED) {
		if (m->fd >= 0)
			close(m->fd);
		delete m;
		return out_of_memory;
	}
	memset(at, poison, bytes);
	munmap(at, bytes);
	state.used += bytes;
	state.physicals.insert(m);
	*h = (unsigned long long)m;
	return success;
}

static void drop(Physical *m) {
	if (!m->released || m->maps)
		return;
	close(m->fd);
	state.used -= m->bytes;
	state.physicals.erase(m);
	delete m;
}

CUDA_API int cuMemRelease(unsigned long long h) {
	ENTER(Call::context, false)
	Physical *m = (Physical *)h;
	if (!state.physicals.count(m) || m->released)
		return say(invalid_value, "%#llx is no physical memory, or no more", h);
	m->released = true;
	drop(m);
	return success;
}

CUDA_API int cuMemMap(uint64_t p, size_t bytes, size_t offset, unsigned long long h, unsigned long long flags) {
	ENTER(Call::context)
	Physical *m = (Physical *)h;
	uint64_t base;
	Reservation *r = reservation_at(p, &base);
	if (!state.physicals.count(m) || m->released || !r || offset || flags || bytes != m->bytes || p % granularity || p + bytes > base + r->bytes)
		return say(invalid_value, "mapping of %zu bytes at %#lx", bytes, (long)p);
	for (auto &i : r->maps)
		if (p < i.first + i.second.bytes && i.first < p + bytes)
			return say(invalid_value, "memory is mapped at %#lx already", (long)i.first);
	if (mmap((void *)p, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, m->fd, 0) == MAP_FAILED)
		return out_of_memory;
	r->maps[p] = {bytes, m, false};
	m->maps++;
	return success;
}

CUDA_API int cuMemUnmap(uint64_t p, size_t bytes) {
	ENTER(Call::context, false)
	uint64_t base;
	Reservation *r = reservation_at(p, &base);
	auto i = r ? r->maps.find(p) : std::map<uint64_t, Reservation::Map>::iterator{};
	if (!r || i == r->maps.end() || i->second.bytes != bytes)
		return say(invalid_value, "no memory of %zu bytes is mapped at %#lx", bytes, (long)p);
	int e = drain_all();
	if (i->second.allowed)
		sim_forbid((void *)p);
	mmap((void *)p, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	Physical *m = i->second.memory;
	r->maps.erase(i);
	m->maps--;
	drop(m);
	return e;
}

struct Access {
	int location_type, location, flags;
};

CUDA_API int cuMemSetAccess(uint64_t p, size_t bytes, const Access *access, size_t n) {
	ENTER(Call::context)
	uint64_t base;
	Reservation *r = reservation_at(p, &base);
	auto i = r ? r->maps.find(p) : std::map<uint64_t, Reservation::Map>::iterator{};
	if (!r || i == r->maps.end() || i->second.bytes != bytes || n != 1 || access->location_type != 1 || access->location != 0 || access->flags != 3)
		return say(invalid_value, "access to %zu bytes at %#lx", bytes, (long)p);
	mprotect((void *)p, bytes, PROT_READ | PROT_WRITE);
	i->second.allowed = true;
	sim_allow((void *)p, (long)bytes);
	return success;
}
