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
// Rows of F16, BF16 and FP8 come ahead by cp.async, as they are: values while
// the products of the keys run, the next keys while the values are added. Each
// thread widens what it asked for itself, so no barrier is needed between. F32
// goes straight to its place, which is free only then.
//
// Versions tried, by what the compiler says of attention_64_128 for sm_90a
// (nothing has been timed yet):
//
//	sequence and item held in registers, score inlined 32 times   spills 564 bytes
//	modifications in one loop through memory.p                    none; dot 156 instructions for 128 products
//	rows of a fixed length in shared memory                       dot 146 for 128, add 278 for 256
//	dot unrolled twice                                            287 for 256, but spills once rows come ahead
//	maxima of the total in the workspace, dot not unrolled        none
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
	Place *place;     // [2][64] of the keys of the tile, and of the next one
	uint64_t *any;    // [Rows] visible keys
	uint64_t *words;  // [terms][Rows] visible keys of a Term
	lc_range *ranges; // [terms][Rows]
	uint4 *raw;       // raw_bytes: rows as they come
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
	m.any = (uint64_t *)(m.place + 2 * lc_tile);
	m.words = m.any + rows;
	m.ranges = (lc_range *)(m.words + p.terms * rows);
	m.raw = (uint4 *)(m.ranges + p.terms * rows);
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
	const lc_item *item;
	const lc_sequence *seq;
	int tid, g, i; // thread, row group, place in the group
	int rows;      // that the item has
	int variant;   // that the queries are turned by
	int fetched;   // first key of the tile of keys that is on its way, or −1
	int side;      // of memory.place: the tile's

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
	DEV_METHOD int head(int r) const { return load_const(&item->head) + r % load_const(&item->heads); }
	DEV_METHOD int token(int r) const { return load_const(&item->t0) + r / load_const(&item->heads); }

	DEV_METHOD void reset() {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			m[k] = max_start();
			UNROLL for (int u = 0; u < Units; u++) o[k][u] = zeros();
		}
		l = 0.0f;
	}

	// begin takes an item: what the block needs to know of each row.
	DEV_METHOD void begin(int j0) {
		seq = (const lc_sequence *)p.sequences + load_const(&item->sequence);
		rows = load_const(&item->tokens) * load_const(&item->heads);
		variant = fetched = -1;
		side = 0;
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
		if (j0 < (int64_t)load_const(&item->chunk1) * lc_chunk)
			locate(j0, 0);
		sync(); // the tables are there
	}

	DEV_METHOD static lc_range load_range(const lc_range *at) {
		int2 x = load_const((const int2 *)at);
		return {x.x, x.y};
	}
	DEV_METHOD static void store_range(lc_range *at, lc_range r) { store_shared((int2 *)at, int2{r.lo, r.hi}); }

	// count is the number of keys of the tile from j0.
	DEV_METHOD int count(int j0) const {
		int64_t n = load_const(&seq->keys) - j0;
		return n < lc_tile ? (int)n : (int)lc_tile;
	}

	// locate finds the places of the keys from j0.
	DEV_METHOD void locate(int j0, int to) {
		if (tid >= count(j0))
			return;
		int64_t j = j0 + tid;
		Place at = {(int)(load_const(&seq->key_start) + j), 0};
		if (p.page_size > 0) {
			at.y = (int)(j % p.page_size);
			at.x = load_const((const int32_t *)p.pages + load_const(&seq->key_start) + j / p.page_size);
		}
		store_shared(memory.place + to * lc_tile + tid, at);
	}

	// look finds the visible keys of each row, and whether there are any.
	DEV_METHOD bool look(int j0, unsigned active) {
		bool found = false;
		for (int r = tid; r < Rows; r += attention_threads) {
			uint64_t seen = 0;
			for (int term = 0; term < p.terms; term++) {
				if (!(active >> term & 1))
					continue;
				uint64_t w = 0;
				if (r < rows) {
					int2 range = load_shared((const int2 *)(memory.ranges + term * Rows + r));
					w = visible_keys(p, seq, {range.x, range.y}, load_const(&seq->i0) + token(r), j0, load_const(&item->kv_head)) & ~seen;
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
			rotate_pair(p, memory.q + r * Row, k % half, table_row(p.row_q, v, x));
		}
	}

	// load_keys fills memory.t with keys first … first+Keys−1 of the tile as a
	// variant turns them. Keys from n on are 0.
	DEV_METHOD void load_keys(int v, int j0, int first, int n) {
		float scale = p.key_scale.data ? load_scalar(p.key_scale, load_const(&item->kv_head), 0) : 1.0f;
		load_tile(p.key, p.coded_key, p.head_dim, (p.head_dim + 3) / 4 * 4, first, n, scale, fetched == j0);
		fetched = -1;
		if (!p.turns_keys)
			return;
		sync();
		int half = p.rotary_dim / 2, have = n - first < Keys ? n - first : Keys;
		for (int k = tid; k < have * half; k += attention_threads) {
			int64_t j = j0 + first + k / half, x = j;
			if (p.key_positions)
				x = load_const((const int32_t *)p.key_positions + load_const(&seq->key_offset) + j);
			rotate_pair(p, memory.t + k / half * Row, k % half, table_row(p.row_k, v, x));
		}
	}

	// whole_units says that rows can be copied in units of 16 bytes.
	DEV_METHOD bool whole_units(const lc_tensor &x) const { return x.vector == 16 && (x.dtype == lc_f32 || p.raw_bytes > 0); }

	// fetch asks for rows first … first+Keys−1 of a tile: F32 straight into
	// memory.t, others into memory.raw, where each thread reads only what it asked
	// for itself. Coded rows are left to land.
	DEV_METHOD void fetch(const lc_tensor &x, int features, int from, int first, int n) {
		int bytes = element_bytes(x.dtype), units = features * bytes / 16;
		const char *base = (const char *)x.data + load_const(&item->kv_head) * x.head * bytes;
		for (int k = tid; k < Keys * units; k += attention_threads) {
			int j = k / units, u = k % units;
			if (first + j >= n)
				break;
			Place at = load_shared(memory.place + from * lc_tile + first + j);
			if (at.x < 0)
				continue;
			void *to = x.dtype == lc_f32 ? (void *)(memory.t + j * Row + 4 * u) : (void *)(memory.raw + k);
			copy_async(to, base + (at.x * x.row + at.y * x.slot) * bytes + 16 * u);
		}
		copy_commit();
	}

	// land waits for what fetch asked for and widens it into memory.t. It returns
	// whether all is finite.
	DEV_METHOD bool land(const lc_tensor &x, const lc_coded &coded, int features, int first, int n, float scale) {
		bool finite = true;
		int each = 16 / element_bytes(x.dtype), units = features / each; // features of a unit
		copy_wait();
		UNROLL_BY(2) for (int k = tid; k < Keys * units; k += attention_threads) {
			int j = k / units, d = k % units * each;
			float *to = memory.t + j * Row + d;
			Place at = {-1, 0};
			bool here = first + j < n;
			if (here)
				at = load_shared(memory.place + side * lc_tile + first + j);
			uint4 u = {0, 0, 0, 0};
			if (x.dtype != lc_f32 && at.x >= 0)
				u = load_shared((const uint4 *)memory.raw + k);
			for (int e = 0; e < each / 4; e++) {
				float4 y = zeros();
				if (here && at.x < 0)
					y = load_key4(x, coded, at, load_const(&item->kv_head), d + 4 * e, features, scale);
				else if (here && x.dtype == lc_f32)
					y = load_shared((const float4 *)to);
				else if (here)
					y = widen4(x.dtype, u, e);
				if (at.x >= 0 && x.dtype >= lc_f8e4m3)
					y = scaled(y, scale);
				finite &= finite4(y);
				if (at.x < 0 || x.dtype != lc_f32)
					store_shared((float4 *)to + e, y);
			}
		}
		return finite;
	}

	// load_tile fills rows of memory.t with features of the tile, and 0 up to
	// padded and for keys from n on. It returns whether all that it loaded is
	// finite. asked says that fetch has been called.
	DEV_METHOD bool load_tile(const lc_tensor &x, const lc_coded &coded, int features, int padded, int first, int n, float scale, bool asked) {
		bool finite = true;
		int from = 0; // features that land loads
		if (whole_units(x)) {
			if (!asked) {
				copy_wait(); // a tile of keys that nobody saw
				fetch(x, features, side, first, n);
			}
			finite = land(x, coded, features, first, n, scale);
			from = features;
		}
		int units = (padded - from) / 4;
		for (int k = tid; k < Keys * units; k += attention_threads) {
			int j = k / units, d = from + k % units * 4;
			float4 y = zeros();
			if (first + j < n && d < features)
				y = load_key4(x, coded, load_shared(memory.place + side * lc_tile + first + j), load_const(&item->kv_head), d, features, scale);
			store_shared((float4 *)(memory.t + j * Row + d), y);
			finite &= finite4(y);
		}
		return finite;
	}

	// dot sets the scores of part x of the tile to products.
	DEV_METHOD void dot(int x) {
		UNROLL for (int k = 0; k < RowsEach; k++)
			UNROLL for (int c = 0; c < KeysPart; c++) s[k][x * KeysPart + c] = 0.0f;
		const float *q = memory.q + g * Row, *t = memory.t + i * Row;
		UNROLL_BY(1) for (int d = 0; d < p.head_dim; d += 4) {
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
	DEV_METHOD void take(int term, int x, int j0, int n, bool whole, bool direct) {
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
			store_shared(at, score(p, load_shared(at), scale, head(r), load_const(&seq->i0) + token(r), (int64_t)j0 + key, load_const(&seq->key_offset)));
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

	// next is the first tile from j0 on of which a row may see a key, or the end
	// of the item's keys.
	DEV_METHOD int next(int64_t j0) const {
		int64_t end = (int64_t)load_const(&item->chunk1) * lc_chunk, at = end;
		for (int term = 0; term < p.terms; term++) {
			int4 b = load_const((const int4 *)p.bounds + load_const(&item->bounds) + term);
			int64_t lo = b.x / lc_tile * lc_tile;
			lo = lo > j0 ? lo : j0;
			at = lo < b.w && lo < at ? lo : at;
		}
		return (int)(at < 0x7fffffff ? at : 0x7fffffff);
	}

	// tile takes the tile from j0 into the state, and sets out to fetch that from
	// ahead, if it is before the end. It reports whether any row sees a key.
	DEV_METHOD bool tile(int j0, int ahead, int64_t end) {
		int n = count(j0), terms = 0;
		unsigned active = 0;
		bool whole = false;
		for (int term = 0; term < p.terms; term++) {
			int4 b = load_const((const int4 *)p.bounds + load_const(&item->bounds) + term);
			lc_bounds x = {b.x, b.y, b.z, b.w};
			if (x.max_hi <= j0 || x.min_lo >= j0 + n)
				continue;
			active |= 1u << term;
			terms++;
			whole = x.max_lo <= j0 && x.min_hi >= j0 + n && !(p.masks & (lc_mask_tree | lc_mask_blocks));
		}
		whole = whole && terms == 1;
		bool direct = terms == 1 && !(p.scores & ~lc_sink_logit);
		if (ahead < end)
			locate(ahead, side ^ 1);
		if (whole)
			sync(); // the places are there
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
		bool early = Parts == 1 && p.value.dtype != lc_f32;
		if (early && whole_units(p.value))
			fetch(p.value, p.value_dim, side, 0, n);
		sync(); // the keys are read
		if (!direct)
			gather(n, whole);
		weigh(whole, n);
		float scale = p.value_scale.data ? load_scalar(p.value_scale, load_const(&item->kv_head), 0) : 1.0f;
		UNROLL for (int x = 0; x < Parts; x++) {
			if (x * Keys >= n && x > 0)
				break;
			if (x > 0)
				sync();
			bool finite = load_tile(p.value, p.coded_value, p.value_dim, (p.value_dim + 63) / 64 * 64, x * Keys, n, scale, early);
			bool careful = sync_or(!finite);
			if (early && whole_units(p.key) && ahead < end) {
				fetch(p.key, p.head_dim, side ^ 1, 0, count(ahead));
				fetched = ahead;
			}
			if (x == 0)
				sum();
			if (careful && !whole)
				add<true>(x * Keys, n);
			else
				add<false>(x * Keys, n);
		}
		return true;
	}

	// What this thread has of the total in the workspace: outputs, then maxima.
	DEV_METHOD float4 *total(int k) const {
		return (float4 *)p.totals + ((int64_t)block_index() * (lc_total_floats(Rows, Dim) / 4 / attention_threads) + k) * attention_threads + tid;
	}
	DEV_METHOD float *total_maximum(int k) const { return (float *)total(RowsEach * Units + k / 4) + k % 4; }

	DEV_METHOD void save() {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			UNROLL for (int u = 0; u < Units; u++) store_global(total(k * Units + u), o[k][u]);
			store_global(total_maximum(k), m[k]);
		}
	}
	DEV_METHOD void restore() {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			UNROLL for (int u = 0; u < Units; u++) o[k][u] = load_global((const float4 *)total(k * Units + u));
			m[k] = load_global((const float *)total_maximum(k));
		}
	}

	// merge adds the state of a chunk, which is in registers, to the total, which
	// is in the workspace but for its denominator.
	DEV_METHOD void merge(float total_l) {
		UNROLL for (int k = 0; k < RowsEach; k++) {
			Factors f = merge_factors(load_global((const float *)total_maximum(k)), m[k]);
			m[k] = f.top;
			if (i == 0) {
				store_shared(memory.merge + row(k), f.a);
				store_shared(memory.merge + Rows + row(k), f.b);
			}
			UNROLL for (int u = 0; u < Units; u++) {
				float4 a = load_global((const float4 *)total(k * Units + u)), &b = o[k][u];
				b.x = fma_(b.x, f.b, mul_(a.x, f.a));
				b.y = fma_(b.y, f.b, mul_(a.y, f.a));
				b.z = fma_(b.z, f.b, mul_(a.z, f.a));
				b.w = fma_(b.w, f.b, mul_(a.w, f.a));
			}
		}
		sync();
		if (sums() >= 0)
			l = fma_(l, load_shared(memory.merge + Rows + sums()), mul_(total_l, load_shared(memory.merge + sums())));
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

	// run computes one item, chunk after chunk.
	DEV_METHOD void run(const lc_item *it) {
		item = it;
		int chunk0 = load_const(&item->chunk0), chunk1 = load_const(&item->chunk1);
		int64_t end = (int64_t)chunk1 * lc_chunk;
		int j0 = next((int64_t)chunk0 * lc_chunk);
		begin(j0);
		bool split = load_const(&item->part) >= 0;
		float total_l = 0.0f;
		bool have = false, here = true; // a total, and that it is in registers
		reset();
		for (int c = chunk0; c < chunk1; c++) {
			int64_t limit = (int64_t)(c + 1) * lc_chunk;
			if (j0 >= limit && !split)
				continue; // nobody sees any of it
			bool seen = false;
			reset();
			while (j0 < limit) {
				int ahead = next((int64_t)j0 + lc_tile);
				seen |= tile(j0, ahead, end);
				side ^= 1;
				j0 = ahead;
			}
			here = split || seen;
			if (split)
				keep(load_const(&item->part) + c - chunk0);
			if (split || !seen)
				continue;
			if (have)
				merge(total_l);
			have = true;
			total_l = l;
			if (j0 < end)
				save();
		}
		copy_wait(); // a tile of keys that nobody saw
		if (split)
			return;
		if (have && !here) {
			restore();
			l = total_l;
		}
		finish();
	}
};

// The items are dealt out back and forth, the most costly first, so that no
// block gets the larger one of every pair.
template <int Rows, int Keys, int Dim> DEV void attention(const lc_attention_params &p) {
	Attention<Rows, Keys, Dim> a(p);
	int n = grid_size(), items = load_const(&((const lc_counts *)p.counts)->items);
	for (int turn = 0, k = block_index(); turn * n < items; turn++) {
		int at = turn * n + (turn % 2 ? n - 1 - k : k);
		if (at < items)
			a.run((const lc_item *)p.items + at);
	}
}
