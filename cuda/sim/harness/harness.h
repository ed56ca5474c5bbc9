// What the harnesses share: memory that kernels may touch, and random numbers.
#pragma once

#include "tensor.cuh"

#include <cstdio>
#include <utility>
#include <vector>

namespace {

uint64_t state = 1;
float normal() { // the sum of four uniforms: enough of a bell
	float x = 0;
	for (int i = 0; i < 4; i++) {
		state = state * 6364136223846793005ull + 1442695040888963407ull;
		x += (float)(state >> 40) * 0x1p-24f - 0.5f;
	}
	return x * 1.7f;
}

// Array is memory that kernels may touch, and nothing around it.
template <class T> struct Array {
	std::vector<T> x;
	explicit Array(std::vector<T> v) : x(std::move(v)) { sim_allow(x.data(), (long)(x.size() * sizeof(T))); }
	Array(Array &&) = default;
	~Array() {
		if (!x.empty())
			sim_forbid(x.data());
	}
	uint64_t at() const { return (uint64_t)x.data(); }
};

float poison() { return from_bits(0x7fdeadbe); }

lc_tensor tensor(const Array<float> &a, int64_t row, int64_t slot, int64_t head, int features) {
	lc_tensor t = {};
	t.data = a.at(), t.row = row, t.slot = slot, t.head = head, t.dim = 1, t.dtype = lc_f32;
	t.vector = features % 4 == 0 && t.data % 16 == 0 ? 16 : 1;
	return t;
}

std::vector<float> random(size_t n) {
	std::vector<float> x(n);
	for (auto &e : x)
		e = normal();
	return x;
}

} // namespace
