// Attention under the Exact policy, in FP32 arithmetic: rules 4 to 8 of package
// kernel, on any input type.
//
// A thread block of 128 threads takes Rows rows (query tokens × query heads of
// one KV head) against tiles of 64 keys. For a tile
//
//	scores   thread (g, i) has rows g, g+8, … and keys i, i+16, … of the tile
//	maximum  over the 16 threads of a row, by shuffles
//	weights  to shared memory; l is one chain a row, run by one thread
//	outputs  thread (g, i) has rows g, g+8, … and features 4i … 4i+3, 64+4i, …
//
// so a row's maximum and factor never leave the registers of its threads. All
// operands come from shared memory in float4, rows an odd multiple of 4 floats
// apart: eight rows at one feature, or eight neighbouring features, lie in
// different banks. Dim bounds the features of keys and of values. With 64 rows a thread has 8×4 scores and 8×8 outputs: 128
// products for 12 loads of 16 bytes, and 256 for 16.
//
// The state of a chunk is in registers. Between chunks the total lies in the
// workspace, where each thread reads only what it wrote itself; one in 65536
// operations is such an access.
//
// A hidden key has weight −0, which changes no sum and no finite product's sum.
// Where a value is not finite and a key is hidden, weights of −0 are skipped.
//
// Shared memory of a block is lc_attention_shared bytes.
#pragma once

#include "rotary.cuh"
#include "score.cuh"
#include "visible.cuh"

enum { attention_threads = 128, score_floats = lc_tile + 4 };

// Memory is the shared memory of a block.
struct Memory {
	float *q;         // [Rows][Row] queries, as the current variant turns them
	float *t;         // [Keys][Row] keys, then values
	float *p;         // [Rows][score_floats] scores, then weights
	float *factor;    // [Rows] of the tile
	float *merge;     // [2][Rows] factors of a merge
	float *m, *l;     // [Rows] at the end
	float *scale;     // [terms][Rows]
	Place *place;     // [64] of the keys of the tile
	uint64_t *any;    // [Rows] visible keys
	uint64_t *words;  // [terms][Rows] visible keys of a Term
	lc_range *ranges; // [terms][Rows]
};

DEV Memory layout(const lc_attention_params &p, int rows, int keys, int dim) {
	Memory m;
	m.q = (float *)shared_memory();
	m.t = m.q + rows * (dim + 4);
	m.p = m.t + keys * (dim + 4);
	m.factor = m.p + rows * score_floats;
	m.merge = m.factor + rows;
	m.m = m.merge + 2 * rows;
	m.l = m.m + rows;
	m.scale = m.l + 2 * rows;
	m.place = (Place *)(m.scale + p.terms * rows);
	m.any = (uint64_t *)(m.place + lc_tile);
	m.words = m.any + rows;
	m.ranges = (lc_range *)(m.words + p.terms * rows);
	return m;
}

template <int Rows, int Keys, int Dim> struct Attention {
	enum {
		RowsEach = Rows / 8,
		KeysEach = lc_tile / 16,
		Parts = lc_tile / Keys, // a tile is loaded in so many
		KeysPart = Keys / 16,
		Units = Dim / 64, // of four features a thread
		Row = Dim + 4     // floats from one row of features to the next: an odd multiple of 4
	};

	const lc_attention_params &p;
	Memory memory;
	lc_item item;
	const lc_sequence *seq;
	int tid, g, i; // thread, row group, place in the group
	int rows;      // that the item has
	int variant;   // that the queries are turned by

	float m[RowsEach];
	float l; // of the row that this thread sums, if it does
	float s[RowsEach][KeysEach];
	float4 o[RowsEach][Units];

	// DEV functions below run on all threads of a block together.

	DEV_METHOD Attention(const lc_attention_params &params) : p(params) {
		memory = layout(p, Rows, Keys, Dim);
		tid = thread_index();
		g = tid / 16, i = tid % 16;
	}

	DEV_METHOD int row(int k) const { return g + 8 * k; }
	// sums is the row whose denominator this thread sums, or −1.
	DEV_METHOD int sums() const {
		int lane = tid % 32;
		return lane < Rows / 4 ? tid / 32 * (Rows / 4) + lane : -1;
	}
	DEV_METHOD int head(int r) const { return item.head + r % item.heads; }
	DEV_METHOD int token(int r) const { return item.t0 + r / item.heads; }

	DEV_METHOD void reset() {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			m[k] = max_start();
			UNROLL for (int u = 0; u < Units; u++) o[k][u] = zeros();
		}
		l = 0.0f;
	}

	// begin takes an item: what the block needs to know of each row.
	DEV_METHOD void begin(const lc_item &it) {
		item = it;
		seq = (const lc_sequence *)p.sequences + item.sequence;
		rows = item.tokens * item.heads;
		variant = -1;
		for (int k = tid; k < p.terms * Rows; k += attention_threads) {
			int term = k / Rows, r = k % Rows;
			lc_range none = {0x7fffffff, 0};
			float scale = 0.0f;
			if (r < rows) {
				int64_t at = (int64_t)term * p.tokens + load_const(&seq->query_start) + token(r);
				none = load_range((const lc_range *)p.ranges + at);
				scale = load_const((const float *)p.scales + at);
			}
			store_shared(memory.scale + k, scale);
			store_range(memory.ranges + k, none);
		}
		sync(); // the tables are there
	}

	DEV_METHOD static lc_range load_range(const lc_range *at) {
		int2 x = load_const((const int2 *)at);
		return {x.x, x.y};
	}
	DEV_METHOD static void store_range(lc_range *at, lc_range r) { store_shared((int2 *)at, int2{r.lo, r.hi}); }

	// locate finds the places of n keys from j0.
	DEV_METHOD void locate(int64_t j0, int n) {
		if (tid >= n)
			return;
		int64_t j = j0 + tid;
		Place at = {(int)(load_const(&seq->key_start) + j), 0};
		if (p.page_size > 0) {
			at.y = (int)(j % p.page_size);
			at.x = load_const((const int32_t *)p.pages + load_const(&seq->key_start) + j / p.page_size);
		}
		store_shared(memory.place + tid, at);
	}

	// look finds the visible keys of each row, and whether there are any.
	DEV_METHOD bool look(int64_t j0, unsigned active) {
		bool found = false;
		for (int r = tid; r < Rows; r += attention_threads) {
			uint64_t seen = 0;
			for (int term = 0; term < p.terms; term++) {
				if (!(active >> term & 1))
					continue;
				uint64_t w = 0;
				if (r < rows) {
					int2 range = load_shared((const int2 *)(memory.ranges + term * Rows + r));
					w = visible_keys(p, seq, {range.x, range.y}, load_const(&seq->i0) + token(r), j0, item.kv_head) & ~seen;
				}
				store_shared(memory.words + term * Rows + r, w);
				seen |= w; // terms are disjoint; where they are not, the first counts
			}
			store_shared(memory.any + r, seen);
			found |= seen != 0;
		}
		return sync_or(found);
	}

	// load_queries fills memory.q for a variant. Rows past the item's are 0.
	DEV_METHOD void load_queries(int v) {
		variant = v;
		int units = (p.head_dim + 3) / 4;
		for (int k = tid; k < Rows * units; k += attention_threads) {
			int r = k / units, d = k % units * 4;
			float4 x = zeros();
			if (r < rows)
				x = load4(p.query, (load_const(&seq->query_start) + token(r)) * p.query.row + head(r) * p.query.head, d, p.head_dim);
			store_shared((float4 *)(memory.q + r * Row + d), x);
		}
		if (p.rotary_dim == 0)
			return;
		sync();
		int half = p.rotary_dim / 2;
		for (int k = tid; k < rows * half; k += attention_threads) {
			int r = k / half;
			int64_t x = load_const(&seq->i0) + token(r);
			if (p.query_positions)
				x = load_const((const int32_t *)p.query_positions + load_const(&seq->query_start) + token(r));
			rotate_pair(p, memory.q + r * Row, k % half, table_row(p.row_q[v], x));
		}
	}

	// load_keys fills memory.t with keys first … first+Keys−1 of the tile as a
	// variant turns them. Keys from n on are 0.
	DEV_METHOD void load_keys(int v, int64_t j0, int first, int n) {
		int units = (p.head_dim + 3) / 4;
		float scale = p.key_scale.data ? load_scalar(p.key_scale, item.kv_head, 0) : 1.0f;
		load_tile(p.key, p.coded_key, units, p.head_dim, first, n, scale);
		if (!p.turns_keys)
			return;
		sync();
		int half = p.rotary_dim / 2, have = n - first < Keys ? n - first : Keys;
		for (int k = tid; k < have * half; k += attention_threads) {
			int64_t j = j0 + first + k / half, x = j;
			if (p.key_positions)
				x = load_const((const int32_t *)p.key_positions + load_const(&seq->key_offset) + j);
			rotate_pair(p, memory.t + k / half * Row, k % half, table_row(p.row_k[v], x));
		}
	}

	// load_tile returns whether all that it loaded is finite.
	DEV_METHOD bool load_tile(const lc_tensor &x, const lc_coded &coded, int units, int features, int first, int n, float scale) {
		bool finite = true;
		for (int k = tid; k < Keys * units; k += attention_threads) {
			int j = k / units, d = k % units * 4;
			float4 y = zeros();
			if (first + j < n)
				y = load_key4(x, coded, load_shared(memory.place + first + j), item.kv_head, d, features, scale);
			store_shared((float4 *)(memory.t + j * Row + d), y);
			finite &= sub_(y.x, y.x) == 0.0f && sub_(y.y, y.y) == 0.0f && sub_(y.z, y.z) == 0.0f && sub_(y.w, y.w) == 0.0f;
		}
		return finite;
	}

	// dot sets the scores of part x of the tile to products.
	DEV_METHOD void dot(int x) {
		UNROLL for (int k = 0; k < RowsEach; k++)
			UNROLL for (int c = 0; c < KeysPart; c++) s[k][x * KeysPart + c] = 0.0f;
		const float *q = memory.q + g * Row, *t = memory.t + i * Row;
		UNROLL_BY(2) for (int d = 0; d < p.head_dim; d += 4) {
			float4 key[KeysPart];
			UNROLL for (int c = 0; c < KeysPart; c++) key[c] = load_shared((const float4 *)(t + 16 * c * Row + d));
			UNROLL for (int k = 0; k < RowsEach; k++) {
				float4 y = load_shared((const float4 *)(q + 8 * k * Row + d));
				UNROLL for (int c = 0; c < KeysPart; c++) {
					float a = s[k][x * KeysPart + c];
					a = fma_(key[c].x, y.x, a);
					a = fma_(key[c].y, y.y, a);
					a = fma_(key[c].z, y.z, a);
					s[k][x * KeysPart + c] = fma_(key[c].w, y.w, a);
				}
			}
		}
	}

	// take makes scores of products where a Term shows the key. They stay in
	// registers if there is one active Term and nothing but a scale, and meet in
	// memory.p otherwise. The modifications are one loop that is not unrolled:
	// their code is long, and would have to keep all outputs alive.
	DEV_METHOD void take(int term, int x, int64_t j0, int n, bool whole, bool direct) {
		bool modified = (p.scores & ~lc_sink_logit) != 0;
		UNROLL for (int k = 0; k < RowsEach; k++) {
			int r = row(k);
			float scale = load_shared(memory.scale + term * Rows + r);
			uint64_t w = direct ? 0 : visible(term, r, n, whole);
			UNROLL for (int c = 0; c < KeysPart; c++) {
				int key = i + 16 * (x * KeysPart + c);
				float &a = s[k][x * KeysPart + c];
				if (direct)
					a = mul_(a, scale);
				else if (w >> key & 1)
					store_shared(memory.p + r * score_floats + key, modified ? a : mul_(a, scale));
			}
		}
		if (!modified)
			return;
		UNROLL_BY(1) for (int k = 0; k < RowsEach * KeysPart; k++) {
			int r = row(k / KeysPart), key = i + 16 * (x * KeysPart + k % KeysPart);
			if (r >= rows || !(visible(term, r, n, whole) >> key & 1))
				continue;
			float *at = memory.p + r * score_floats + key, scale = load_shared(memory.scale + term * Rows + r);
			store_shared(at, score(p, load_shared(at), scale, head(r), load_const(&seq->i0) + token(r), j0 + key, load_const(&seq->key_offset)));
		}
	}

	// visible is the keys of the tile that row r sees in a Term.
	DEV_METHOD uint64_t visible(int term, int r, int n, bool whole) const {
		return whole ? span_bits(0, n) : load_shared(memory.words + term * Rows + r);
	}

	// gather fetches the scores that take left in memory.p.
	DEV_METHOD void gather(int n, bool whole) {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			uint64_t w = whole ? span_bits(0, n) : load_shared(memory.any + row(k));
			UNROLL for (int c = 0; c < KeysEach; c++)
				if (w >> (i + 16 * c) & 1)
					s[k][c] = load_shared(memory.p + row(k) * score_floats + i + 16 * c);
		}
	}

	// weigh makes weights of scores, puts them into memory.p and scales o.
	DEV_METHOD void weigh(bool whole, int n) {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			int r = row(k);
			uint64_t w = whole ? span_bits(0, n) : load_shared(memory.any + r);
			float top = m[k];
			UNROLL for (int c = 0; c < KeysEach; c++)
				if (w >> (i + 16 * c) & 1)
					top = max_(top, s[k][c]);
			UNROLL for (int x = 8; x > 0; x /= 2) top = max_(top, shuffle_xor(top, x));
			float f = exp2_exact(sub_(m[k], top));
			m[k] = top;
			UNROLL for (int c = 0; c < KeysEach; c++) {
				float e = exp2_exact(sub_(s[k][c], top));
				store_shared(memory.p + r * score_floats + i + 16 * c, w >> (i + 16 * c) & 1 ? e : -0.0f);
			}
			if (i == 0)
				store_shared(memory.factor + r, f);
			UNROLL for (int u = 0; u < Units; u++)
				o[k][u] = {mul_(o[k][u].x, f), mul_(o[k][u].y, f), mul_(o[k][u].z, f), mul_(o[k][u].w, f)};
		}
	}

	// sum adds the weights of the tile to l, keys ascending.
	DEV_METHOD void sum() {
		int r = sums();
		if (r < 0)
			return;
		l = mul_(l, load_shared(memory.factor + r));
		UNROLL_BY(4) for (int j = 0; j < lc_tile; j += 4) {
			float4 w = load_shared((const float4 *)(memory.p + r * score_floats + j));
			l = add_(add_(add_(add_(l, w.x), w.y), w.z), w.w);
		}
	}

	template <bool Careful> DEV_METHOD static float accumulate(float v, float w, float o) {
		if (Careful && as_bits(w) == 0x80000000u)
			return o;
		return fma_(v, w, o);
	}

	// add adds weights times values for the keys first … of the tile that
	// memory.t holds.
	template <bool Careful> DEV_METHOD void add(int first, int n) {
		int have = n - first < Keys ? n - first : Keys;
		const float *t = memory.t + 4 * i, *w0 = memory.p + g * score_floats + first;
		UNROLL_BY(1) for (int j = 0; j < have; j += 4) {
			float4 w[RowsEach];
			UNROLL for (int k = 0; k < RowsEach; k++) w[k] = load_shared((const float4 *)(w0 + 8 * k * score_floats + j));
			UNROLL for (int y = 0; y < 4; y++) {
				UNROLL for (int u = 0; u < Units; u++) {
					if (Units > 2 && 64 * u >= p.value_dim)
						break;
					float4 v = load_shared((const float4 *)(t + (j + y) * Row + 64 * u));
					UNROLL for (int k = 0; k < RowsEach; k++) {
						float x = y == 0 ? w[k].x : y == 1 ? w[k].y : y == 2 ? w[k].z : w[k].w;
						float4 &a = o[k][u];
						a.x = accumulate<Careful>(v.x, x, a.x);
						a.y = accumulate<Careful>(v.y, x, a.y);
						a.z = accumulate<Careful>(v.z, x, a.z);
						a.w = accumulate<Careful>(v.w, x, a.w);
					}
				}
			}
		}
	}

	// tile takes n keys from j0 into the state. It reports whether any row sees
	// one of them.
	DEV_METHOD bool tile(int64_t j0, int n) {
		unsigned active = 0;
		int count = 0;
		bool whole = false;
		for (int term = 0; term < p.terms; term++) {
			int4 b = load_const((const int4 *)p.bounds + item.bounds + term);
			lc_bounds x = {b.x, b.y, b.z, b.w};
			if (x.max_hi <= j0 || x.min_lo >= j0 + n)
				continue;
			active |= 1u << term;
			count++;
			whole = x.max_lo <= j0 && x.min_hi >= j0 + n && !(p.masks & (lc_mask_tree | lc_mask_blocks));
		}
		if (count == 0)
			return false;
		whole = whole && count == 1;
		bool direct = count == 1 && !(p.scores & ~lc_sink_logit);
		locate(j0, n);
		if (whole)
			sync();
		else if (!look(j0, active))
			return false;

		bool loaded = false; // something is in memory.t
		for (int v = 0; v < p.terms; v++) {
			if (p.variant[v] != v)
				continue;
			unsigned mine = 0;
			for (int term = v; term < p.terms; term++)
				if (p.variant[term] == v)
					mine |= active & 1u << term;
			if (mine == 0)
				continue;
			UNROLL for (int x = 0; x < Parts; x++) {
				if (loaded)
					sync();
				if (x == 0 && variant != v)
					load_queries(v);
				load_keys(v, j0, x * Keys, n);
				loaded = true;
				sync();
				dot(x);
				for (int term = v; term < p.terms; term++)
					if (mine >> term & 1)
						take(term, x, j0, n, whole, direct);
			}
		}
		sync(); // the keys are read
		if (!direct)
			gather(n, whole);
		weigh(whole, n);
		float scale = p.value_scale.data ? load_scalar(p.value_scale, item.kv_head, 0) : 1.0f;
		UNROLL for (int x = 0; x < Parts; x++) {
			if (x * Keys >= n && x > 0)
				break;
			if (x > 0)
				sync();
			bool finite = load_tile(p.value, p.coded_value, (p.value_dim + 63) / 64 * 16, p.value_dim, x * Keys, n, scale);
			bool careful = sync_or(!finite);
			if (x == 0)
				sum();
			if (careful && !whole)
				add<true>(x * Keys, n);
			else
				add<false>(x * Keys, n);
		}
		return true;
	}

	// chunk computes the state of a chunk of keys. It reports whether any row
	// sees a key.
	DEV_METHOD bool chunk(int c) {
		reset();
		bool seen = false;
		int64_t end = (int64_t)(c + 1) * lc_chunk;
		end = end < load_const(&seq->keys) ? end : load_const(&seq->keys);
		for (int64_t j0 = (int64_t)c * lc_chunk; j0 < end; j0 += lc_tile)
			seen |= tile(j0, (int)(end - j0 < 64 ? end - j0 : 64));
		return seen;
	}

	DEV_METHOD float4 *total() const {
		return (float4 *)p.totals + (int64_t)block_index() * (RowsEach * Units * attention_threads) + tid;
	}
	DEV_METHOD void save() {
		UNROLL for (int k = 0; k < RowsEach; k++)
			UNROLL for (int u = 0; u < Units; u++) store_global(total() + (k * Units + u) * attention_threads, o[k][u]);
	}
	DEV_METHOD void restore() {
		UNROLL for (int k = 0; k < RowsEach; k++)
			UNROLL for (int u = 0; u < Units; u++) o[k][u] = load_global((const float4 *)total() + (k * Units + u) * attention_threads);
	}

	// merge adds the state of a chunk, which is in registers, to the total: its
	// outputs are in the workspace, the rest in tm and tl.
	DEV_METHOD void merge(const float (&tm)[RowsEach], float tl) {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			Factors f = merge_factors(tm[k], m[k]);
			m[k] = f.top;
			if (i == 0) {
				store_shared(memory.merge + row(k), f.a);
				store_shared(memory.merge + Rows + row(k), f.b);
			}
			UNROLL for (int u = 0; u < Units; u++) {
				float4 a = load_global((const float4 *)total() + (k * Units + u) * attention_threads), &b = o[k][u];
				b.x = fma_(b.x, f.b, mul_(a.x, f.a));
				b.y = fma_(b.y, f.b, mul_(a.y, f.a));
				b.z = fma_(b.z, f.b, mul_(a.z, f.a));
				b.w = fma_(b.w, f.b, mul_(a.w, f.a));
			}
		}
		sync();
		if (sums() >= 0)
			l = fma_(l, load_shared(memory.merge + Rows + sums()), mul_(tl, load_shared(memory.merge + sums())));
	}

	// finish adds the sink, divides, rounds and stores the rows.
	DEV_METHOD void finish() {
		sync();
		UNROLL for (int k = 0; k < RowsEach; k++) {
			int r = row(k);
			if (p.scores & lc_sink_logit && r < rows) {
				Factors f = merge_factors(m[k], mul_(load_scalar(p.sink_logit, head(r), 0), log2_e()));
				m[k] = f.top;
				if (i == 0) {
					store_shared(memory.merge + r, f.a);
					store_shared(memory.merge + Rows + r, f.b);
				}
				UNROLL for (int u = 0; u < Units; u++) {
					float4 &a = o[k][u];
					a.x = fma_(0.0f, f.b, mul_(a.x, f.a));
					a.y = fma_(0.0f, f.b, mul_(a.y, f.a));
					a.z = fma_(0.0f, f.b, mul_(a.z, f.a));
					a.w = fma_(0.0f, f.b, mul_(a.w, f.a));
				}
			}
			if (i == 0)
				store_shared(memory.m + r, m[k]);
		}
		sync();
		int mine = sums();
		if (mine >= 0 && mine < rows) {
			if (p.scores & lc_sink_logit)
				l = fma_(1.0f, load_shared(memory.merge + Rows + mine), mul_(l, load_shared(memory.merge + mine)));
			store_shared(memory.l + mine, l);
			if (p.lse.data) {
				int64_t at = (load_const(&seq->query_start) + token(mine)) * p.lse.row + head(mine) * p.lse.col;
				store_global((float *)p.lse.data + at, lse_exact(load_shared(memory.m + mine), l));
			}
		}
		sync();
		UNROLL for (int k = 0; k < RowsEach; k++) {
			int r = row(k);
			if (r >= rows)
				break;
			float total = load_shared(memory.l + r), inv = div_(1.0f, total);
			int64_t at = (load_const(&seq->query_start) + token(r)) * p.out.row + head(r) * p.out.head;
			UNROLL for (int u = 0; u < Units; u++) {
				float4 x = o[k][u];
				x = {add_(mul_(x.x, inv), 0.0f), add_(mul_(x.y, inv), 0.0f), add_(mul_(x.z, inv), 0.0f), add_(mul_(x.w, inv), 0.0f)};
				store4(p.out, at, 64 * u + 4 * i, p.value_dim, total == 0.0f ? zeros() : x);
			}
		}
	}

	// keep stores the state of a chunk as a part.
	DEV_METHOD void keep(int part) {
		float *to = (float *)p.parts + (int64_t)part * (Rows * (Dim + 2));
		UNROLL for (int k = 0; k < RowsEach; k++) {
			int r = row(k);
			if (r >= rows)
				break;
			UNROLL for (int u = 0; u < Units; u++) store_global((float4 *)(to + r * Dim + 64 * u + 4 * i), o[k][u]);
			if (i == 0)
				store_global(to + Rows * Dim + r, m[k]);
		}
		if (sums() >= 0 && sums() < rows)
			store_global(to + Rows * (Dim + 1) + sums(), l);
	}

	// run computes one item.
	DEV_METHOD void run(const lc_item &it) {
		begin(it);
		if (item.part >= 0) {
			for (int c = item.chunk0; c < item.chunk1; c++) {
				chunk(c);
				keep(item.part + c - item.chunk0);
			}
			return;
		}
		float tm[RowsEach], tl = 0.0f;
		bool have = false, here = true; // a total, and that it is in registers
		reset();
		UNROLL for (int k = 0; k < RowsEach; k++) tm[k] = max_start();
		for (int c = item.chunk0; c < item.chunk1; c++) {
			here = chunk(c);
			if (!here)
				continue;
			if (have)
				merge(tm, tl);
			have = true;
			UNROLL for (int k = 0; k < RowsEach; k++) tm[k] = m[k];
			tl = l;
			if (c + 1 < item.chunk1)
				save();
		}
		if (have && !here) {
			restore();
			UNROLL for (int k = 0; k < RowsEach; k++) m[k] = tm[k];
			l = tl;
		}
		finish();
	}
};

// The items are dealt out back and forth, the most costly first, so that no
// block gets the larger one of every pair.
template <int Rows, int Keys, int Dim> DEV void attention(const lc_attention_params &p) {
	Attention<Rows, Keys, Dim> a(p);
	int n = grid_size();
	for (int turn = 0, k = block_index(); turn * n < p.item_count; turn++) {
		int at = turn * n + (turn % 2 ? n - 1 - k : k);
		if (at < p.item_count)
			a.run(*((const lc_item *)p.items + at));
	}
}
