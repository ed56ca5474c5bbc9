// Modules, launches and tensor maps of the simulated driver.
#include <cstring>

#include "driver.h"

using namespace driver;

namespace {

const long plain_shared = 48 << 10, most_shared = 227 << 10;

// An image begins as a fatbin, an ELF file or PTX does.
bool is_image(const void *image) {
	static const unsigned char fatbin[] = {0x50, 0xed, 0x55, 0xba};
	const char *text = (const char *)image;
	return !memcmp(image, fatbin, 4) || !memcmp(image, "\177ELF", 4) || !strncmp(text, ".version", 8) || !strncmp(text, "//", 2);
}

struct Dim {
	unsigned x, y, z;
};

const char *launch_error(const Function &f, Dim g, Dim b, long shared) {
	if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z)
		return "a grid or a block of nothing";
	if (g.x > 0x7fffffff || g.y > 65535 || g.z > 65535)
		return "the grid is too large";
	if (b.x > 1024 || b.y > 1024 || b.z > 64 || (long)b.x * b.y * b.z > 1024)
		return "the block is too large";
	if (shared > f.dynamic_limit)
		return "more dynamic shared memory than the kernel is allowed";
	return nullptr;
}

// What the device says of what the simulator found.
int code_of(int sim) {
	switch (sim) {
	case SIM_OK: return success;
	case SIM_ADDRESS: case SIM_SHARED: return illegal_address;
	case SIM_SYNC: return launch_timeout;
	case SIM_ASSERT: return assertion;
	default: return launch_failed;
	}
}

int launch(void *h, Dim g, Dim b, unsigned shared, void *stream, void **params, void **extra) {
	Stream *s = stream_of(stream);
	if (!s)
		return invalid_handle;
	if (!state.functions.count((Function *)h))
		return say(invalid_handle, "%p is no kernel, or its module is unloaded", h);
	Function &f = *(Function *)h;
	if (!params || !params[0] || extra)
		return say(invalid_value, "%s is launched without its parameter", f.kernel->name);
	if (const char *why = launch_error(f, g, b, shared))
		return say(invalid_value, "%s with grid %u,%u,%u, block %u,%u,%u, %u bytes of dynamic shared memory: %s (%ld bytes)", f.kernel->name,
			g.x, g.y, g.z, b.x, b.y, b.z, shared, why, f.dynamic_limit);
	const sim_kernel *k = f.kernel;
	auto copy = std::make_shared<std::vector<char>>((const char *)params[0], (const char *)params[0] + k->param_bytes);
	return put(s, {[=] {
		int code = sim_launch(k, {g.x, g.y, g.z}, {b.x, b.y, b.z}, shared, copy->data());
		if (code)
			state.note = std::string(k->name) + ": " + sim_error();
		return code_of(code);
	}});
}

} // namespace

CUDA_API int cuModuleLoadData(void **out, const void *image) {
	ENTER(Call::context)
	if (!image || !is_image(image))
		return say(invalid_image, "the image is no fatbin, no cubin and no PTX");
	Module *m = new Module;
	state.modules.insert(m);
	*out = m;
	return success;
}

CUDA_API int cuModuleUnload(void *h) {
	ENTER(Call::context, false)
	Module *m = (Module *)h;
	if (!state.modules.count(m))
		return say(invalid_handle, "%p is no module, or no more", h);
	int e = drain_all();
	for (auto &f : m->functions) {
		state.functions.erase(f.second);
		delete f.second;
	}
	state.modules.erase(m);
	delete m;
	return e;
}

CUDA_API int cuModuleGetFunction(void **out, void *h, const char *name) {
	ENTER(Call::context)
	Module *m = (Module *)h;
	if (!state.modules.count(m))
		return say(invalid_handle, "%p is no module, or no more", h);
	const sim_kernel *k = sim_find(name);
	if (!k)
		return not_found;
	Function *&f = m->functions[name];
	if (!f) {
		f = new Function;
		f->kernel = k;
		f->dynamic_limit = plain_shared - k->static_shared;
		state.functions.insert(f);
	}
	*out = f;
	return success;
}

static Function *function_of(void *h) {
	if (state.functions.count((Function *)h))
		return (Function *)h;
	say(invalid_handle, "%p is no kernel, or its module is unloaded", h);
	return nullptr;
}

CUDA_API int cuFuncGetAttribute(int *v, int attribute, void *h) {
	ENTER(Call::context)
	Function *f = function_of(h);
	if (!f)
		return invalid_handle;
	switch (attribute) {
	case 0: *v = 1024; break;
	case 1: *v = (int)f->kernel->static_shared; break;
	case 3: *v = 0; break;  // local memory
	case 4: *v = 32; break; // registers: there are none
	case 8: *v = (int)f->dynamic_limit; break;
	default: return say(invalid_value, "attribute %d of a kernel", attribute);
	}
	return success;
}

CUDA_API int cuFuncSetAttribute(void *h, int attribute, int value) {
	ENTER(Call::context)
	Function *f = function_of(h);
	if (!f)
		return invalid_handle;
	if (attribute != 8 || value < 0 || value + f->kernel->static_shared > most_shared)
		return say(invalid_value, "attribute %d of %s becomes %d", attribute, f->kernel->name, value);
	f->dynamic_limit = value;
	return success;
}

CUDA_API int cuFuncGetParamInfo(void *h, size_t i, size_t *offset, size_t *size) {
	ENTER(Call::context)
	Function *f = function_of(h);
	if (!f)
		return invalid_handle;
	if (i)
		return invalid_value; // one parameter
	*offset = 0;
	*size = (size_t)f->kernel->param_bytes;
	return success;
}

CUDA_API int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
	void **params, void **extra) {
	ENTER(Call::context)
	return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, stream, params, extra);
}

struct Attribute {
	int id;
	char pad[4];
	union {
		char pad[64];
		unsigned cluster[3];
		int flag;
	} value;
};

struct Config {
	unsigned gx, gy, gz, bx, by, bz, shared;
	void *stream;
	Attribute *attributes;
	unsigned count;
};

CUDA_API int cuLaunchKernelEx(const Config *c, void *f, void **params, void **extra) {
	ENTER(Call::context)
	unsigned x = 1, y = 1, z = 1;
	for (unsigned i = 0; i < c->count; i++) {
		const Attribute &a = c->attributes[i];
		if (a.id == 4)
			x = a.value.cluster[0], y = a.value.cluster[1], z = a.value.cluster[2];
		else if (a.id != 6)
			return say(invalid_value, "attribute %d of a launch", a.id);
	}
	if (!x || !y || !z || x * y * z > 8 || c->gx % x || c->gy % y || c->gz % z)
		return say(invalid_value, "clusters of %u,%u,%u in a grid of %u,%u,%u", x, y, z, c->gx, c->gy, c->gz);
	return launch(f, {c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, c->shared, c->stream, params, extra);
}

CUDA_API int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *dims, const uint64_t *strides,
	const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int, int fill) {
	ENTER(Call::init)
	static const unsigned sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
	if (!map || (uintptr_t)map % 64 || (uintptr_t)address % 16 || type < 0 || type > 9 || rank < 1 || rank > 5 || interleave || swizzle < 0 || swizzle > 3)
		return say(invalid_value, "a tensor map of type %d, rank %u, at %p of %p", type, rank, map, address);
	for (uint32_t i = 0; i < rank; i++)
		if (!dims[i] || dims[i] > 1ull << 32 || !box[i] || box[i] > 256 || steps[i] < 1 || steps[i] > 8 ||
			(i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ull << 40)))
			return say(invalid_value, "dimension %u of a tensor map", i);
	unsigned inner = box[0] * sizes[type];
	if (inner % 16 || (swizzle && inner > 16u << swizzle))
		return say(invalid_value, "a tensor map with an innermost box of %u bytes and swizzle %d", inner, swizzle);
	struct {
		uint64_t address, dims[5], strides[4];
		uint32_t box[5];
		uint16_t type, rank, swizzle, fill;
	} t = {};
	static_assert(sizeof t <= 128, "");
	t.address = (uint64_t)address;
	memcpy(t.dims, dims, rank * 8);
	if (rank > 1)
		memcpy(t.strides, strides, (rank - 1) * 8);
	memcpy(t.box, box, rank * 4);
	t.type = (uint16_t)type, t.rank = (uint16_t)rank, t.swizzle = (uint16_t)swizzle, t.fill = (uint16_t)fill;
	memset(map, 0, 128);
	memcpy(map, &t, sizeof t);
	return success;
}
