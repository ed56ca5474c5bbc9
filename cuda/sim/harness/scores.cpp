// Runs the kernels of scores.cuh and loss.cuh on the simulator, on small problems,
// against rules 20 to 23 of package kernel one pair at a time. It ends as
// harness.cpp does.
#include "scores.cuh"

#include "harness.h"
#include "loss.cuh"

KERNEL(key_scores_8, lc_key_scores_params, product_threads, 4, (key_scores<8>(p)))
KERNEL(key_scores_64, lc_key_scores_params, product_threads, 2, (key_scores<64>(p)))
KERNEL(code_scores_256, lc_code_scores_params, code_threads, 2, (code_scores(p)))
KERNEL(loss_queries_64, lc_loss_params, product_threads, 2, (loss_queries(p)))
KERNEL(loss_keys_64, lc_loss_params, product_threads, 2, (loss_keys(p)))

namespace {

typedef std::vector<float> Floats;

struct Check {
	const char *name;
	int bad = 0;
	void operator()(const char *what, int at, int h, int d, float got, float want) {
		if (as_bits(got) != as_bits(want) && !(got != got && want != want) && bad++ == 0)
			printf("%s: %s of %d, head %d, %d is %.9g, want %.9g\n", name, what, at, h, d, got, want);
	}
	int done() const {
		printf("%s: %d elements differ\n", name, bad);
		return bad != 0;
	}
};

int launched(const char *name, int grid, int threads, int shared, const void *p) {
	int code = sim_launch(sim_find(name), {(unsigned)grid, 1, 1}, {(unsigned)threads, 1, 1}, shared, p);
	if (code)
		printf("%s: error %d: %s\n", name, code, sim_error());
	return code;
}

float dot(const float *x, const float *y, int n) {
	float sum = 0;
	for (int d = 0; d < n; d++)
		sum = fma_(y[d], x[d], sum);
	return sum;
}

// One sequence of 90 keys in pages of 8, the last page first, and its queries.
const int keys = 90, size = 8, pages = 12, group = 2, kv_heads = 2, heads = group * kv_heads, dim = 71;

std::vector<int32_t> table() {
	std::vector<int32_t> t;
	for (int k = 0; k < pages; k++)
		t.push_back(pages - 1 - k);
	return t;
}

// rows is rule 20, with some channels or all, slots side by side or features.
int rows(const char *name, int tokens, int channels, bool turned) {
	Array<float> query(random((size_t)tokens * heads * dim)), key(random((size_t)pages * size * kv_heads * dim)), out(Floats((size_t)tokens * heads * 100, poison()));
	Array<int32_t> starts({0, tokens}), indptr({0, pages}), lens({keys}), list(table());
	std::vector<int32_t> chosen;
	for (int k = 0; k < tokens * kv_heads * channels; k++)
		chosen.push_back((k * 17 + k / channels) % dim);
	Array<int32_t> taken(chosen);
	lc_key_scores_params p = {};
	p.query = tensor(query, heads * dim, 0, dim, dim), p.out = tensor(out, heads * 100, 0, 100, 100);
	p.key = tensor(key, size * kv_heads * dim, kv_heads * dim, dim, dim);
	if (turned)
		p.key.slot = 1, p.key.head = size * dim, p.key.dim = size, p.key.vector = 1;
	p.query_start = starts.at(), p.key_start = indptr.at(), p.seq_lens = lens.at(), p.pages = list.at();
	p.heads = kv_heads, p.group = group, p.features = channels ? channels : dim, p.page_size = size, p.columns = 100, p.scale = 0.3f;
	p.channels = channels ? taken.at() : 0;
	int each = tokens * group > 8 && !channels ? 64 : 8;
	p.row_blocks = channels ? tokens : (tokens * group + each - 1) / each, p.tiles = 2, p.items = kv_heads * p.row_blocks * p.tiles;
	if (launched(each == 64 ? "key_scores_64" : "key_scores_8", 3, product_threads, lc_key_scores_shared(each), &p))
		return 2;
	Check check{name};
	for (int t = 0; t < tokens; t++)
		for (int h = 0; h < heads; h++)
			for (int j = 0; j < 100; j++) {
				float want = 0;
				int64_t at = j < keys ? list.x[j / size] * p.key.row + j % size * p.key.slot + h / group * p.key.head : 0;
				for (int c = 0; c < p.features; c++) {
					int d = channels ? chosen[(t * kv_heads + h / group) * channels + c] : c;
					want = fma_(key.x[at + d * p.key.dim], query.x[(t * heads + h) * dim + d], want);
				}
				check("the score", t, h, j, out.x[(t * heads + h) * 100 + j], j < keys ? mul_(want, p.scale) : minus_infinity());
			}
	return check.done();
}

// sequences is rule 22, of two sequences.
int sequences() {
	Array<int32_t> query_start({0, 3, 70}), key_start({0, 66, 80});
	Array<int64_t> pairs({0, 3 * 66});
	Array<float> query(random(70 * heads * dim)), key(random(80 * kv_heads * dim)), out(Floats(heads * (3 * 66 + 67 * 14), poison()));
	lc_key_scores_params p = {};
	int64_t all = 3 * 66 + 67 * 14;
	p.query = tensor(query, heads * dim, 0, dim, dim), p.key = tensor(key, kv_heads * dim, 0, dim, dim);
	p.out = tensor(out, all, 0, 0, 1);
	p.query_start = query_start.at(), p.key_start = key_start.at(), p.pairs = pairs.at();
	p.heads = kv_heads, p.group = group, p.features = dim, p.columns = 66, p.scale = 0.3f;
	p.row_blocks = 3, p.tiles = 2, p.items = 2 * kv_heads * p.row_blocks * p.tiles;
	if (launched("key_scores_64", 5, product_threads, lc_key_scores_shared(64), &p))
		return 2;
	Check check{"sequences"};
	for (int s = 0; s < 2; s++)
		for (int h = 0; h < heads; h++) {
			int q0 = query_start.x[s], k0 = key_start.x[s], n = key_start.x[s + 1] - k0;
			for (int r = 0; r < query_start.x[s + 1] - q0; r++)
				for (int j = 0; j < n; j++)
					check("the score", r, h, j, out.x[h * all + pairs.x[s] + r * n + j],
						mul_(dot(&query.x[((q0 + r) * heads + h) * dim], &key.x[((k0 + j) * kv_heads + h / group) * dim], dim), p.scale));
		}
	return check.done();
}

// codes is rule 21: three rows of each KV head's keys need the table twice.
int codes() {
	const int tokens = 3, parts = 9, n = 256;
	Array<float> scores(random((size_t)tokens * heads * parts * n)), out(Floats((size_t)tokens * heads * 100, poison()));
	std::vector<uint8_t> random_codes;
	for (int k = 0; k < pages * size * kv_heads * parts; k++)
		random_codes.push_back((uint8_t)(k * 37 + k / 11));
	Array<uint8_t> stored(random_codes);
	Array<int32_t> starts({0, tokens}), indptr({0, pages}), lens({keys}), list(table());
	lc_code_scores_params p = {};
	p.table = tensor(scores, heads * parts * n, 0, parts * n, parts * n), p.out = tensor(out, heads * 100, 0, 100, 100);
	p.codes.data = stored.at(), p.codes.row = size * kv_heads * parts, p.codes.slot = kv_heads * parts, p.codes.head = parts, p.codes.dim = 1;
	p.codes.dtype = lc_u8, p.codes.vector = 1;
	p.query_start = starts.at(), p.key_start = indptr.at(), p.seq_lens = lens.at(), p.pages = list.at();
	p.items = kv_heads, p.tiles = 1, p.columns = 100, p.heads = kv_heads, p.group = group, p.parts = parts, p.codes_of_part = n, p.page_size = size;
	if (launched("code_scores_256", 2, code_threads, lc_code_scores_shared(), &p))
		return 2;
	Check check{"codes"};
	for (int t = 0; t < tokens; t++)
		for (int h = 0; h < heads; h++)
			for (int j = 0; j < 100; j++) {
				float want = 0;
				for (int k = 0; k < parts && j < keys; k++)
					want = add_(want, scores.x[((t * heads + h) * parts + k) * n + stored.x[((list.x[j / size] * size + j % size) * kv_heads + h / group) * parts + k]]);
				check("the score", t, h, j, out.x[(t * heads + h) * 100 + j], j < keys ? want : minus_infinity());
			}
	return check.done();
}

// loss is rule 23: one sequence of 70 queries and 66 keys.
int loss() {
	const int tokens = 70, n = 66, wide = 67, narrow = 10;
	const float below = -0.5f, gradient = 0.7f;
	Array<int32_t> query_start({0, tokens}), key_start({0, n});
	Array<float> sq(random(tokens * heads * wide)), sk(random(n * kv_heads * wide)), tq(random(tokens * heads * narrow)), tk(random(n * narrow));
	Array<float> out(Floats(tokens * heads, poison())), dq(Floats(tokens * heads * wide, poison())), dk(Floats(n * kv_heads * wide, poison()));
	lc_loss_params p = {};
	p.student = {tensor(sq, heads * wide, 0, wide, wide), tensor(sk, kv_heads * wide, 0, wide, wide), 0.2f, group, wide, 0};
	p.teacher = {tensor(tq, heads * narrow, 0, narrow, narrow), tensor(tk, narrow, 0, narrow, narrow), 0.4f, heads, narrow, 0};
	p.dquery = tensor(dq, heads * wide, 0, wide, wide), p.dkey = tensor(dk, kv_heads * wide, 0, wide, wide);
	p.out = {out.at(), heads, 1, heads};
	p.query_start = query_start.at(), p.key_start = key_start.at(), p.heads = heads, p.zero_below = below, p.gradient = gradient;
	for (const char *name : {"loss_queries_64", "loss_keys_64"}) {
		p.tiles = 2, p.items = p.tiles * (name[5] == 'q' ? heads : kv_heads);
		if (launched(name, 3, product_threads, lc_loss_shared(), &p))
			return 2;
	}
	Check check{"loss"};
	Floats want_k(n * kv_heads * wide, 0.0f);
	for (int h = 0; h < heads; h++)
		for (int t = 0; t < tokens; t++) {
			float sum = 0, *q = &sq.x[(t * heads + h) * wide];
			Floats want(wide, 0.0f);
			for (int j = 0; j < n; j++) {
				float *k = &sk.x[(j * kv_heads + h / group) * wide], *to = &want_k[(j * kv_heads + h / group) * wide];
				float s = mul_(dot(q, k, wide), 0.2f), x = mul_(dot(&tq.x[(t * heads + h) * narrow], &tk.x[j * narrow], narrow), 0.4f);
				bool zeroed = s <= below;
				float e = sub_(zeroed ? 0.0f : s, x <= below ? 0.0f : x), g = zeroed ? 0.0f : mul_(e, gradient);
				sum = fma_(e, e, sum);
				for (int d = 0; d < wide; d++)
					want[d] = fma_(k[d], g, want[d]), to[d] = fma_(q[d], g, to[d]);
			}
			check("the loss", t, h, 0, out.x[t * heads + h], sum);
			for (int d = 0; d < wide; d++)
				check("dQ", t, h, d, dq.x[(t * heads + h) * wide + d], want[d]);
		}
	for (int k = 0; k < n * kv_heads * wide; k++)
		check("dK", k / wide / kv_heads, k / wide % kv_heads, k % wide, dk.x[k], want_k[k]);
	return check.done();
}

} // namespace

int main() {
	auto all = {+[] { return rows("decode", 2, 0, false); }, +[] { return rows("prefill", 40, 0, false); }, +[] { return rows("channels", 3, 70, false); },
		+[] { return rows("channels of slots", 3, 5, true); }, +[] { return sequences(); }, +[] { return codes(); }, +[] { return loss(); }};
	for (auto one : all)
		if (int code = one())
			return code;
	return 0;
}
