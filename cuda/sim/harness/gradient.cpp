// Runs the kernels of gradient.cuh on the simulator, on small problems, against
// the rules of package kernel one pair at a time. It ends as harness.cpp does.
#include "gradient.cuh"
#include "harness.h"

KERNEL(start_gradients_128, lc_gradient_params, gradient_threads, 1, (start_gradients(p)))
KERNEL(query_gradients_64, lc_gradient_params, gradient_threads, 2, (query_gradients(p)))
KERNEL(key_gradients_64, lc_gradient_params, gradient_threads, 2, (key_gradients(p)))
KERNEL(column_stats_64, lc_gradient_params, gradient_threads, 2, (column_stats(p)))

namespace {

// Problem is one sequence. With near > 0 a second Term has the keys nearer than
// that, turned by other rows of the table.
struct Problem {
	const char *name;
	int tokens, keys; // the last token sees the last key
	int heads, kv_heads, head_dim, value_dim;
	int rotary, near;
	bool cap, special; // queries that are not finite, and see no key but the first
	int window;        // of column_stats
};

const Problem problems[] = {
	{"plain", 70, 130, 2, 1, 24, 72, 0, 0, false, false, 0},
	{"terms", 70, 75, 2, 2, 72, 20, 68, 30, true, false, 3},
	{"special", 66, 140, 2, 1, 16, 12, 10, 0, false, true, 2},
};

typedef std::vector<float> Floats;

struct Check {
	const Problem &q;
	int bad = 0;
	void operator()(const char *what, int at, int h, int d, float got, float want) {
		if (as_bits(got) != as_bits(want) && !(got != got && want != want) && bad++ == 0)
			printf("%s: %s of %d, head %d, feature %d is %.9g, want %.9g\n", q.name, what, at, h, d, got, want);
	}
};

int run(const Problem &q) {
	int group = q.heads / q.kv_heads, i0 = q.keys - q.tokens, terms = q.near ? 2 : 1, half = q.rotary / 2, D = q.head_dim, V = q.value_dim;
	Array<float> query(random((size_t)q.tokens * q.heads * D)), key(random((size_t)q.keys * q.kv_heads * D)), value(random((size_t)q.keys * q.kv_heads * V));
	Array<float> out(random((size_t)q.tokens * q.heads * V)), dout(random((size_t)q.tokens * q.heads * V)), lse(random((size_t)q.tokens * q.heads));
	Array<float> cos(random((size_t)(q.keys + 1) * std::max(half, 1))), sin(random((size_t)(q.keys + 1) * std::max(half, 1)));
	Floats blank((size_t)std::max(q.keys, q.tokens) * q.heads * (D + V), poison());
	Array<float> dquery(blank), dkey(blank), dvalue(blank), sums(blank), delta(blank);
	float scale = log2_e() / std::sqrt((float)D), cap = 3 * log2_e(), inv_cap = 1 / cap;

	lc_sequence s = {};
	s.i0 = i0, s.keys = q.keys, s.queries = q.tokens;
	Array<lc_sequence> sequences({s});
	std::vector<lc_range> seen;
	for (int term = 0; term < terms; term++)
		for (int t = 0; t < q.tokens; t++) {
			int i = i0 + t, split = q.near ? std::max(i - q.near + 1, 0) : i + 1;
			lc_range r = term ? lc_range{split, i + 1} : lc_range{0, split};
			if (q.special && t % 9 == 4) {
				r = {0, 1};
				for (int d = 0; d < q.heads * D; d++)
					query.x[(size_t)t * q.heads * D + d] = from_bits(0x7f800000);
			}
			seen.push_back(r.lo < r.hi ? r : lc_range{0x7fffffff, 0});
		}
	Array<lc_range> ranges(seen);
	Array<float> scales(Floats((size_t)terms * q.tokens, scale));
	std::vector<lc_item> rows;
	std::vector<lc_bounds> extremes;
	for (int h = 0; h < q.heads; h++)
		for (int t0 = 0; t0 < q.tokens; t0 += 64) {
			int n = std::min(64, q.tokens - t0);
			rows.push_back({0, h / group, h, 1, t0, n, 0, (q.keys + lc_chunk - 1) / lc_chunk, t0 / 64 * terms, -1});
			for (int term = 0; term < terms && h == 0; term++) {
				lc_bounds b = {0x7fffffff, 0, 0x7fffffff, 0};
				for (int t = t0; t < t0 + n; t++) {
					lc_range r = seen[(size_t)term * q.tokens + t];
					b = {std::min(b.min_lo, r.lo), std::max(b.max_lo, r.lo), std::min(b.min_hi, r.hi), std::max(b.max_hi, r.hi)};
				}
				extremes.push_back(b);
			}
		}
	std::vector<lc_span> tiles;
	int each = (int)rows.size() / q.kv_heads;
	for (int j = 0; j < q.keys; j += lc_tile)
		for (int g = 0; g < q.kv_heads; g++)
			tiles.push_back({0, g, j, g * each, each, 0});
	Array<lc_item> blocks(rows);
	Array<lc_bounds> bounds(extremes);
	Array<lc_span> spans(tiles);

	lc_gradient_params p = {};
	lc_attention_params &a = p.a;
	a.query = tensor(query, (int64_t)q.heads * D, 0, D, D), p.dquery = tensor(dquery, (int64_t)q.heads * D, 0, D, D);
	a.key = tensor(key, (int64_t)q.kv_heads * D, 0, D, D), p.dkey = tensor(dkey, (int64_t)q.kv_heads * D, 0, D, D);
	a.value = tensor(value, (int64_t)q.kv_heads * V, 0, V, V), p.dvalue = tensor(dvalue, (int64_t)q.kv_heads * V, 0, V, V);
	a.out = tensor(out, (int64_t)q.heads * V, 0, V, V), p.dout = tensor(dout, (int64_t)q.heads * V, 0, V, V);
	a.lse = {lse.at(), q.heads, 1, q.heads}, p.out = {sums.at(), q.heads, 1, q.heads};
	a.sequences = sequences.at(), a.bounds = bounds.at(), a.ranges = ranges.at(), a.scales = scales.at();
	a.cos = cos.at(), a.sin = sin.at(), a.rotary_dim = q.rotary, a.turns_keys = q.rotary > 0;
	a.inv_cap = inv_cap, a.cap = cap, a.scores = q.cap ? lc_soft_cap : 0;
	a.tokens = q.tokens, a.heads = q.heads, a.kv_heads = q.kv_heads, a.group = group;
	a.head_dim = D, a.value_dim = V, a.terms = terms;
	std::vector<lc_row_map> maps_q, maps_k;
	for (int term = 0; term < terms; term++) {
		a.variant[term] = term;
		maps_q.push_back({0, 0, 0, term, q.keys - 1});
		maps_k.push_back({0, term ? 2 : 0, 0, 0, q.keys});
	}
	Array<lc_row_map> rows_q(maps_q), rows_k(maps_k);
	a.row_q = rows_q.at(), a.row_k = rows_k.at();
	auto row_q = [&](int term, int i) { return term + std::min(i, q.keys - 2); };
	auto row_k = [&](int term, int j) { return term ? j / 2 : j; };
	int grid = std::max(1, (int)tiles.size() - 1); // so that a block takes two
	p.slices = terms * lc_gradient_slices(D) + lc_gradient_slices(V);
	Array<float> work(Floats((size_t)grid * lc_gradient_sums(p.slices), poison())), turned(Floats((size_t)grid * lc_gradient_turned(terms, D), poison()));
	p.blocks = blocks.at(), p.spans = spans.at(), p.delta = delta.at(), p.sums = work.at(), p.turned = turned.at();
	Array<lc_counts> counts({{0, 0, (int)rows.size(), (int)tiles.size()}});
	a.counts = counts.at();
	for (const char *name : {"start_gradients_128", "query_gradients_64", "key_gradients_64", "column_stats_64"}) {
		if (name[0] == 'c')
			p.stats = 1, p.power = 2, p.window = q.window, p.delta = 0;
		unsigned n = name[0] == 's' ? 1 : std::min(grid, (int)(name[0] == 'q' ? rows.size() : tiles.size()));
		if (int code = sim_launch(sim_find(name), {n, 1, 1}, {gradient_threads, 1, 1}, name[0] == 's' ? 0 : lc_gradient_shared(terms), &p)) {
			printf("%s: %s: error %d: %s\n", q.name, name, code, sim_error());
			return 2;
		}
	}

	auto turn = [&](const float *x, int row, bool back) {
		Floats y(x, x + D);
		for (int k = 0; k < half; k++) {
			float c = cos.x[(size_t)row * half + k], s = sin.x[(size_t)row * half + k];
			s = back ? -s : s;
			y[k] = fma_(x[k], c, -mul_(x[k + half], s)), y[k + half] = fma_(x[k + half], c, mul_(x[k], s));
		}
		return y;
	};
	auto dot = [](const float *x, const float *y, int n) {
		float sum = 0;
		for (int d = 0; d < n; d++)
			sum = fma_(x[d], y[d], sum);
		return sum;
	};
	Check check{q};
	std::vector<Floats> dk((size_t)terms * q.keys * q.kv_heads, Floats(D, 0.0f)), dv((size_t)q.keys * q.kv_heads, Floats(V, 0.0f));
	for (int h = 0; h < q.heads; h++) {
		int g = h / group;
		Floats column(q.keys, 0.0f);
		for (int t = 0; t < q.tokens; t++) {
			size_t r = (size_t)t * q.heads + h;
			float d = dot(&dout.x[r * V], &out.x[r * V], V), l = mul_(lse.x[r], log2_e());
			Floats total(D, 0.0f);
			for (int term = 0; term < terms; term++) {
				lc_range range = seen[(size_t)term * q.tokens + t];
				Floats dq(D, 0.0f), x = turn(&query.x[r * D], row_q(term, i0 + t), false);
				for (int j = range.lo; j < range.hi; j++) {
					size_t c = (size_t)j * q.kv_heads + g;
					Floats k = turn(&key.x[c * D], row_k(term, j), false);
					float score = mul_(dot(x.data(), k.data(), D), scale), th = 0;
					if (q.cap)
						th = tanh_exact(mul_(score, inv_cap)), score = mul_(th, cap);
					float w = exp2_exact(sub_(score, l)), z = mul_(w, sub_(dot(&dout.x[r * V], &value.x[c * V], V), d));
					if (q.cap)
						z = mul_(z, fma_(-th, th, 1.0f));
					z = mul_(z, mul_(scale, ln_2()));
					if (q.window == 0 || t >= q.tokens - q.window)
						column[j] = add_(column[j], mul_(w, w));
					for (int e = 0; e < D; e++) {
						dq[e] = fma_(k[e], z, dq[e]);
						float &to = dk[(size_t)term * q.keys * q.kv_heads + c][e];
						to = fma_(x[e], z, to);
					}
					for (int e = 0; e < V; e++)
						dv[c][e] = fma_(dout.x[r * V + e], w, dv[c][e]);
				}
				Floats y = turn(dq.data(), row_q(term, i0 + t), true);
				for (int e = 0; e < D; e++)
					total[e] = add_(total[e], y[e]);
			}
			for (int e = 0; e < D; e++)
				check("dQ", t, h, e, dquery.x[r * D + e], total[e]);
		}
		for (int j = 0; j < q.keys; j++)
			check("the column sum", j, h, 0, sums.x[(size_t)j * q.heads + h], column[j]);
	}
	for (int j = 0; j < q.keys; j++)
		for (int g = 0; g < q.kv_heads; g++) {
			size_t c = (size_t)j * q.kv_heads + g;
			Floats total(D, 0.0f);
			for (int term = 0; term < terms; term++) {
				Floats y = turn(dk[(size_t)term * q.keys * q.kv_heads + c].data(), row_k(term, j), true);
				for (int e = 0; e < D; e++)
					total[e] = add_(total[e], y[e]);
			}
			for (int e = 0; e < D; e++)
				check("dK", j, g, e, dkey.x[c * D + e], total[e]);
			for (int e = 0; e < V; e++)
				check("dV", j, g, e, dvalue.x[c * V + e], add_(dv[c][e], 0.0f));
		}
	printf("%s: %d elements differ\n", q.name, check.bad);
	return check.bad != 0;
}

} // namespace

int main() {
	for (auto &q : problems)
		if (int code = run(q))
			return code;
	return 0;
}
