// Runs kernels on the simulator without Go: what package simtest compiles, as
// it stands or with a bug planted in the sources.
//
//	harness attention          small problems, against the rules of package kernel one key at a time
//	harness exact < x > y      scalar functions: float32 in, the bits of E, L, T and widened types out
//
// It ends with 0, with 1 where bits differ, with 2 where the simulator reports
// an error.
#include "attention.cuh"
#include "decode_coded.cuh"
#include "harness.h"
#include "merge.cuh"

#include <algorithm>

KERNEL(attention_64_64, lc_attention_params, attention_threads, 2, (attention<64, 64, 64>(p)))
KERNEL(attention_16_512, lc_attention_params, attention_threads, 2, (attention<16, 32, 512>(p)))
KERNEL(decode_4_128, lc_attention_params, decode_threads, 4, (decode<PlainDecode<4, 128>>(p)))
KERNEL(decode_coded_4_128, lc_attention_params, decode_threads, 4, (decode<CodedDecode<4, 128>>(p)))
KERNEL(attention_merge, lc_attention_params, merge_threads, 1, (merge_parts(p)))

namespace {

// Problem is one sequence and one Term.
struct Problem {
	const char *name, *kernel;
	int rows, dim;    // of the kernel
	int tokens, keys; // the last token sees the last key
	int heads, kv_heads, head_dim, value_dim, page_size;
	bool causal, sink, split;
	bool special; // values that are not finite where some rows do not see them
	bool bf16;    // keys and values
	int codec, group; // of every second page; of values
};

const Problem problems[] = {
	{"causal", "attention_64_64", 64, 64, 90, 200, 2, 1, 24, 40, 0, true, false, false, false, false, 0, 0},
	{"short", "attention_64_64", 64, 64, 5, 20, 1, 1, 8, 8, 16, true, false, false, false, false, 0, 0},
	{"special", "attention_64_64", 64, 64, 40, 130, 1, 1, 16, 20, 0, true, false, false, true, false, 0, 0},
	{"paged", "attention_64_64", 64, 64, 3, 70, 4, 2, 24, 64, 16, true, true, false, false, true, 0, 0},
	{"chunks", "attention_64_64", 64, 64, 70, 1200, 1, 1, 8, 12, 0, true, true, false, false, false, 0, 0},
	{"split", "attention_64_64", 64, 64, 2, 1600, 2, 1, 16, 8, 32, true, true, true, false, true, 0, 0},
	{"late", "attention_64_64", 64, 64, 20, 700, 2, 2, 32, 64, 0, true, false, false, true, true, 0, 0},
	{"decode", "decode_4_128", 16, 128, 2, 700, 2, 1, 32, 64, 16, true, true, true, true, true, 0, 0},
	{"int8", "decode_coded_4_128", 16, 128, 2, 700, 2, 1, 32, 64, 16, true, true, true, true, true, lc_int8, 16},
	{"int4", "decode_coded_4_128", 16, 128, 1, 300, 4, 1, 32, 64, 40, true, false, true, false, false, lc_int4, 8},
	{"wide", "attention_16_512", 16, 512, 5, 150, 3, 1, 96, 300, 0, false, false, false, false, false, 0, 0},
};

struct State {
	float m = max_start(), l = 0;
	std::vector<float> o;
	void merge(const State &b) {
		Factors f = merge_factors(m, b.m);
		m = f.top, l = fma_(b.l, f.b, mul_(l, f.a));
		for (size_t d = 0; d < o.size(); d++)
			o[d] = fma_(b.o[d], f.b, mul_(o[d], f.a));
	}
};

// Codes are the codes of the odd pages, random, and what they stand for goes into x.
struct Codes {
	int codec, group, size, heads, features;
	Array<uint8_t> codes;
	Array<uint16_t> scale, zero;

	Codes(Array<float> &x, int codec, int keys, int pages, int size, int heads, int features, int group, const std::vector<int32_t> &table)
		: codec(codec), group(group), size(size), heads(heads), features(features),
		  codes(std::vector<uint8_t>(codec ? (size_t)pages * size * heads * bytes() : 0)),
		  scale(std::vector<uint16_t>(codec ? (size_t)pages * heads * groups() : 0)), zero(scale.x) {
		for (size_t i = 0; i < scale.x.size(); i++)
			scale.x[i] = narrow_f16(normal() * 0.02f), zero.x[i] = narrow_f16(normal());
		for (auto &c : codes.x)
			c = (uint8_t)(as_bits(normal()) >> 7);
		for (int j = 0; codec && j < keys; j++)
			for (int h = 0; h < heads; h++)
				for (int d = 0; d < features; d++) {
					int64_t page = table[j / size], slot = j % size;
					if (page % 2)
						x.x[(((size_t)page * size + slot) * heads + h) * features + d] = value(page, slot, h, d);
				}
	}
	float value(int64_t page, int64_t slot, int h, int d) const {
		int eighth = std::max(features / 8, 1), k = d / eighth;
		size_t row = ((size_t)page * size + slot) * heads + h;
		uint8_t c = codes.x[row * bytes() + (codec == lc_int4 ? d % eighth * 4 + k / 2 : d)];
		c = codec == lc_int4 ? c >> 4 * (k % 2) & 15 : c;
		size_t at = group ? row * (features / group) + d / group : ((size_t)page * heads + h) * features + d;
		return fma_((float)c, widen_f16(scale.x[at]), widen_f16(zero.x[at]));
	}
	int bytes() const { return codec == lc_int4 ? features / 2 : features; }
	int groups() const { return group ? size * (features / group) : features; }
	lc_coded params() const {
		lc_coded c = {};
		c.codec = codec, c.group = group;
		c.codes.data = codes.at(), c.codes.slot = heads * bytes(), c.codes.row = size * c.codes.slot, c.codes.head = bytes(), c.codes.dim = 1;
		c.codes.dtype = lc_u8, c.codes.vector = 16;
		int64_t row = group ? features / group : features;
		c.scale.head = row, c.scale.slot = group ? heads * row : 0, c.scale.row = (int64_t)heads * groups(), c.scale.dim = 1;
		c.scale.dtype = lc_f16, c.scale.vector = row % 8 == 0 ? 16 : row % 4 == 0 ? 4 : 1;
		c.zero = c.scale;
		c.scale.data = scale.at(), c.zero.data = zero.at();
		return c;
	}
};

int run(const Problem &q) {
	int group = q.heads / q.kv_heads, i0 = q.keys - q.tokens, size = q.page_size;
	int pages = size ? (q.keys + size - 1) / size : 0, slots = size ? pages * size : q.keys;
	Array<float> query(random((size_t)q.tokens * q.heads * q.head_dim));
	Array<float> key(std::vector<float>((size_t)slots * q.kv_heads * q.head_dim, poison()));
	Array<float> value(std::vector<float>((size_t)slots * q.kv_heads * q.value_dim, poison()));
	Array<int32_t> table(std::vector<int32_t>(std::max(pages, 1)));
	for (int i = 0; i < pages; i++)
		table.x[i] = (i * 7 + 3) % pages == i ? i : pages - 1 - i;
	auto row = [&](int j) { return size ? table.x[j / size] * size + j % size : j; };
	for (int j = 0; j < q.keys; j++)
		for (int e = 0; e < q.kv_heads * q.head_dim; e++)
			key.x[(size_t)row(j) * q.kv_heads * q.head_dim + e] = normal();
	for (int j = 0; j < q.keys; j++)
		for (int e = 0; e < q.kv_heads * q.value_dim; e++)
			value.x[(size_t)row(j) * q.kv_heads * q.value_dim + e] = q.special && j % 50 == 49 ? from_bits(0x7f800000) : normal();
	Codes coded_key(key, q.codec, q.keys, pages, size, q.kv_heads, q.head_dim, 0, table.x);
	Codes coded_value(value, q.codec, q.keys, pages, size, q.kv_heads, q.value_dim, q.group, table.x);
	std::vector<uint16_t> key16, value16;
	for (auto x : {std::make_pair(&key, &key16), std::make_pair(&value, &value16)})
		for (size_t i = 0; i < x.first->x.size(); i++) {
			float &e = x.first->x[i];
			x.second->push_back(as_bits(e) >> 16);
			if (q.bf16 && !(q.codec && i / (x.first->x.size() / pages) % 2))
				e = from_bits(as_bits(e) & 0xffff0000u);
		}
	Array<uint16_t> bf16_key(key16), bf16_value(value16);
	Array<float> out(std::vector<float>((size_t)q.tokens * q.heads * q.value_dim, poison()));
	Array<float> lse(std::vector<float>((size_t)q.tokens * q.heads, poison()));
	Array<float> sink(random(q.heads));

	lc_sequence s = {};
	s.i0 = i0, s.keys = q.keys, s.queries = q.tokens;
	Array<lc_sequence> sequences({s});
	std::vector<lc_range> seen;
	for (int t = 0; t < q.tokens; t++)
		seen.push_back({0, q.causal ? i0 + t + 1 : q.keys});
	Array<lc_range> ranges(seen);
	float scale = log2_e() / std::sqrt((float)q.head_dim);
	Array<float> scales(std::vector<float>(q.tokens, scale));
	std::vector<lc_item> work, merges;
	std::vector<lc_bounds> extremes;
	int tokens = std::min(q.rows / group, q.dim == 128 ? 4 / group : q.rows), chunks = (q.keys + lc_chunk - 1) / lc_chunk, parts = 0;
	for (int t0 = 0; t0 < q.tokens; t0 += tokens) {
		int n = std::min(tokens, q.tokens - t0);
		extremes.push_back({0, 0, seen[t0].hi, seen[t0 + n - 1].hi});
		for (int g = 0; g < q.kv_heads; g++) {
			lc_item it = {0, g, g * group, group, t0, n, 0, chunks, (int)extremes.size() - 1, -1};
			if (!q.split) {
				work.push_back(it);
				continue;
			}
			it.part = parts;
			parts += chunks;
			merges.push_back(it);
			for (int c = 0; c < chunks; c++) {
				it.chunk0 = c, it.chunk1 = c + 1, it.part = merges.back().part + c;
				work.push_back(it);
			}
		}
	}
	Array<lc_item> items(work), joined(merges);
	Array<lc_bounds> bounds(extremes);
	int grid = std::max(1, (int)work.size() - 1); // so that a block takes two items
	Array<float> totals(std::vector<float>((size_t)grid * lc_total_floats(q.rows, q.dim), poison()));
	Array<float> states(std::vector<float>((size_t)std::max(parts, 1) * q.rows * (q.dim + 2), poison()));

	lc_attention_params p = {};
	p.query = tensor(query, (int64_t)q.heads * q.head_dim, 0, q.head_dim, q.head_dim);
	int64_t k = (int64_t)q.kv_heads * q.head_dim, v = (int64_t)q.kv_heads * q.value_dim;
	p.key = tensor(key, size ? k * size : k, k, q.head_dim, q.head_dim);
	p.value = tensor(value, size ? v * size : v, v, q.value_dim, q.value_dim);
	int raw = 0;
	if (q.bf16) {
		p.key.data = bf16_key.at(), p.value.data = bf16_value.at();
		p.key.dtype = p.value.dtype = lc_bf16;
		p.key.vector = q.head_dim % 8 == 0 ? 16 : 1, p.value.vector = q.value_dim % 8 == 0 ? 16 : 1;
		p.raw_bytes = raw = 64 * 2 * q.dim;
	}
	p.out = tensor(out, (int64_t)q.heads * q.value_dim, 0, q.value_dim, q.value_dim);
	p.lse = {lse.at(), q.heads, 1, q.heads};
	p.sink_logit = {sink.at(), 1, 0, 1};
	p.sequences = sequences.at(), p.items = items.at(), p.merges = joined.at(), p.bounds = bounds.at();
	p.ranges = ranges.at(), p.scales = scales.at(), p.pages = table.at();
	p.totals = totals.at(), p.parts = states.at();
	Array<lc_counts> counts({{(int)work.size(), (int)merges.size(), 0, 0}});
	p.counts = counts.at();
	std::vector<int32_t> listed = table.x; // coded pages as −1 − page
	for (auto &e : listed)
		e = q.codec && e % 2 ? -1 - e : e;
	Array<int32_t> list(listed);
	p.pages = list.at();
	p.coded_key = coded_key.params(), p.coded_value = coded_value.params();
	p.part_rows = q.rows, p.part_dim = q.dim;
	p.tokens = q.tokens, p.heads = q.heads, p.kv_heads = q.kv_heads, p.group = group;
	p.head_dim = q.head_dim, p.value_dim = q.value_dim, p.page_size = size, p.terms = 1;
	p.scores = q.sink ? lc_sink_logit : 0;
	int keys = q.rows == 16 ? 32 : 64;
	int shared = lc_attention_shared(q.rows, keys, q.dim, 1) + raw;
	unsigned threads = attention_threads;
	if (q.dim == 128)
		shared = q.codec ? lc_decode_coded_shared(4, 128, q.bf16 ? 2 : 4, size, q.value_dim / q.group) : lc_decode_shared(4, 128, 2), threads = decode_threads;
	int code = sim_launch(sim_find(q.kernel), {(unsigned)grid, 1, 1}, {threads, 1, 1}, shared, &p);
	if (!code && parts)
		code = sim_launch(sim_find("attention_merge"), {(unsigned)(merges.size() * q.rows), 1, 1}, {merge_threads, 1, 1}, lc_merge_shared(), &p);
	if (code) {
		printf("%s: error %d: %s\n", q.name, code, sim_error());
		return 2;
	}

	int bad = 0;
	auto compare = [&](const char *what, int t, int h, int d, float got, float want) {
		if (as_bits(got) != as_bits(want) && !(got != got && want != want) && bad++ == 0)
			printf("%s: %s of token %d, head %d, feature %d is %.9g, want %.9g\n", q.name, what, t, h, d, got, want);
	};
	for (int t = 0; t < q.tokens; t++)
		for (int h = 0; h < q.heads; h++) {
			int n = seen[t].hi, g = h / group;
			State total;
			total.o.assign(q.value_dim, 0.0f);
			for (int c0 = 0; c0 < n; c0 += lc_chunk) {
				State part;
				part.o.assign(q.value_dim, 0.0f);
				for (int j0 = c0; j0 < std::min(n, c0 + lc_chunk); j0 += lc_tile) {
					float x[lc_tile], top = part.m;
					int have = std::min({n, c0 + lc_chunk, j0 + lc_tile}) - j0;
					for (int j = 0; j < have; j++) {
						float a = 0;
						for (int d = 0; d < q.head_dim; d++)
							a = fma_(key.x[((size_t)row(j0 + j) * q.kv_heads + g) * q.head_dim + d], query.x[((size_t)t * q.heads + h) * q.head_dim + d], a);
						x[j] = mul_(a, scale), top = max_(top, x[j]);
					}
					float f = exp2_exact(sub_(part.m, top));
					part.m = top, part.l = mul_(part.l, f);
					for (auto &o : part.o)
						o = mul_(o, f);
					for (int j = 0; j < have; j++) {
						float w = exp2_exact(sub_(x[j], top));
						part.l = add_(part.l, w);
						for (int d = 0; d < q.value_dim; d++)
							part.o[d] = fma_(value.x[((size_t)row(j0 + j) * q.kv_heads + g) * q.value_dim + d], w, part.o[d]);
					}
				}
				total.merge(part);
			}
			if (q.sink) {
				State one;
				one.m = mul_(sink.x[h], log2_e()), one.l = 1;
				one.o.assign(q.value_dim, 0.0f);
				total.merge(one);
			}
			size_t at = (size_t)t * q.heads + h;
			compare("LSE", t, h, 0, lse.x[at], lse_exact(total.m, total.l));
			for (int d = 0; d < q.value_dim; d++)
				compare("Out", t, h, d, out.x[at * q.value_dim + d], add_(mul_(total.o[d], div_(1.0f, total.l)), 0.0f));
		}
	printf("%s: %d elements differ\n", q.name, bad);
	return bad != 0;
}

// exact writes nine words for each float read: E, L, T, and of its low 16 bits
// F16, BF16, and of its low 8 E4M3 and E5M2, widened; then F16 and BF16, rounded.
int exact() {
	for (float x; fread(&x, 4, 1, stdin) == 1;) {
		uint32_t u = as_bits(x);
		uint32_t y[9] = {
			as_bits(exp2_exact(x)), as_bits(log2_exact(x)), as_bits(tanh_exact(x)),
			as_bits(widen_f16((uint16_t)u)), as_bits(widen_bf16((uint16_t)u)), as_bits(widen_f8e4m3((uint8_t)u)), as_bits(widen_f8e5m2((uint8_t)u)),
			narrow_f16(x), narrow_bf16(x)};
		fwrite(y, 4, 9, stdout);
	}
	return 0;
}

} // namespace

int main(int argc, char **argv) {
	if (argc > 1 && !strcmp(argv[1], "exact"))
		return exact();
	for (auto &q : problems)
		if (int code = run(q))
			return code;
	return 0;
}
