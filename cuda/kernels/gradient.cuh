// The weights of an attention anew, from its LSE, and what is summed of them:
// the gradients (rule 10 of package kernel) and the column statistics (rule 15).
//
// Three kernels share one struct. A thread block of 128 threads meets 64 rows
// (query tokens of one head) with 64 keys:
//
//	query_gradients  owns rows, and goes through the tiles of keys ascending
//	key_gradients    owns a tile of keys of a KV head, and goes through the heads
//	                 of its group and their tokens ascending
//	column_stats     likewise
//
// so each sum has one owner and one order, without atomics. The scores and dP are
// computed by both of the first two: 7 products of 64 × 64 × dim a tile. A
// product takes 64 features at a time through shared memory, rotated on the way,
// so that heads of any dimension and any number of Terms are served by the same
// code: 128 products for 12 loads of 16 bytes, as in attention.cuh. The sums of
// a block, which no registers would hold for all features and Terms, lie in the
// workspace, where each thread reads only what it wrote itself: 64 KB of traffic
// in the second-level cache for 64 × 64 × 64 products, a sixth of their time.
//
// A hidden pair has weights of −0, which change no sum and no finite product's
// sum; where an operand is not finite they are skipped.
#pragma once

#include "product.cuh"
#include "rotary.cuh"
#include "score.cuh"
#include "visible.cuh"

enum { gradient_threads = product_threads };

// turned4 is features d … d+3 of a row that load reads by fours, turned by a row
// of the table, or back.
template <class Load> DEV float4 turned4(const lc_attention_params &p, Load load, int d, int64_t at, bool back) {
	float4 x = load(d);
	if (d >= p.rotary_dim)
		return x;
	int half = p.rotary_dim / 2;
	const float *cos = (const float *)p.cos + at * half, *sin = (const float *)p.sin + at * half;
	float *e = &x.x;
	float4 other = p.interleaved || half % 4 ? x : load(d < half ? d + half : d - half);
	float y[4] = {other.x, other.y, other.z, other.w}, to[4];
	UNROLL for (int k = 0; k < 4; k++) {
		int f = d + k;
		to[k] = e[k];
		if (f >= p.rotary_dim)
			continue;
		bool first = p.interleaved ? k % 2 == 0 : f < half;
		int pair = p.interleaved ? f / 2 : first ? f : f - half;
		float a = y[k];
		if (p.interleaved)
			a = y[k ^ 1];
		else if (half % 4) {
			int from = first ? f + half : f - half;
			float4 z = load(from / 4 * 4);
			a = from % 4 == 0 ? z.x : from % 4 == 1 ? z.y : from % 4 == 2 ? z.z : z.w;
		}
		float c = load_const(cos + pair), s = load_const(sin + pair);
		if (back)
			s = -s;
		to[k] = first ? fma_(e[k], c, -mul_(a, s)) : fma_(e[k], c, mul_(a, s));
	}
	return {to[0], to[1], to[2], to[3]};
}

struct Gradient {
	const lc_gradient_params &q;
	const lc_attention_params &p;
	float *x, *y;     // [64][slice_row] features of rows, and of keys
	float *w, *g;     // [64][slice_row] weights, and gradients of the products q·k
	float *scale;     // [terms][64]
	float *lse, *delta; // [64] in units of log 2
	Place *place;     // [64] of the keys
	uint64_t *any;    // [64] visible keys
	uint64_t *words;  // [terms][64] visible keys of a Term
	int tid, gr, i;   // thread, row group, place in the group

	const lc_item *item; // the rows
	const lc_sequence *seq;
	int rows, first; // tokens of the item, and the first of them that count
	int j0, n;       // the keys
	int kv_head;
	unsigned active; // Terms that may show a pair of the tile
	float s[8][4]; // of rows gr + 8k and keys i + 16c

	DEV_METHOD Gradient(const lc_gradient_params &params) : q(params), p(params.a) {
		x = (float *)shared_memory();
		y = x + 64 * slice_row;
		w = y + 64 * slice_row;
		g = w + 64 * slice_row;
		lse = g + 64 * slice_row;
		delta = lse + 64;
		scale = delta + 64;
		place = (Place *)(scale + p.terms * 64);
		any = (uint64_t *)(place + 64);
		words = any + 64;
		tid = thread_index();
		gr = tid / 16, i = tid % 16;
	}

	DEV_METHOD int64_t token(int r) const { return load_const(&item->t0) + r; }
	DEV_METHOD int64_t row(int r) const { return load_const(&seq->query_start) + token(r); }

	// set_keys takes the keys from j.
	DEV_METHOD void set_keys(int64_t j) {
		sync(); // the last places are read
		j0 = (int)j;
		int64_t left = load_const(&seq->keys) - j;
		n = left < lc_tile ? (int)left : (int)lc_tile;
		if (tid >= n)
			return;
		int64_t k = j + tid;
		Place at = {(int)(load_const(&seq->key_start) + k), 0};
		if (p.page_size > 0) {
			at.y = (int)(k % p.page_size);
			at.x = load_const((const int32_t *)p.pages + load_const(&seq->key_start) + k / p.page_size);
		}
		store_shared(place + tid, at);
	}

	// set_rows takes the rows of an item, without the tokens before since.
	DEV_METHOD void set_rows(const lc_item *it, int since) {
		sync(); // what belongs to the last rows is read
		item = it;
		rows = load_const(&item->tokens);
		first = since - load_const(&item->t0);
		int head = load_const(&item->head);
		for (int k = tid; k < p.terms * 64; k += gradient_threads) {
			float f = 0.0f;
			if (k % 64 < rows)
				f = load_const((const float *)p.scales + (int64_t)(k / 64) * p.tokens + row(k % 64));
			store_shared(scale + k, f);
		}
		if (tid < 64) {
			float a = minus_infinity(), b = 0.0f;
			if (tid < rows) {
				a = load_scalar(p.lse, row(tid), head);
				if (q.delta)
					b = load_const((const float *)q.delta + row(tid) * p.heads + head);
			}
			store_shared(lse + tid, mul_(a, log2_e()));
			store_shared(delta + tid, b);
		}
	}

	// look finds the visible keys of each row, and whether there are any.
	DEV_METHOD bool look() {
		active = 0; // the same for all threads
		for (int term = 0; term < p.terms; term++) {
			int4 b = load_const((const int4 *)p.bounds + load_const(&item->bounds) + term);
			if (b.w > j0 && b.x < j0 + n)
				active |= 1u << term;
		}
		if (!active)
			return false;
		bool found = false;
		if (tid < 64) {
			uint64_t seen = 0;
			bool here = tid < rows && tid >= first;
			if (here && q.stats) // a query that sees nothing gives no weight
				here = as_bits(load_scalar(p.lse, row(tid), load_const(&item->head))) != 0xff800000u;
			for (int term = 0; term < p.terms; term++) {
				uint64_t v = 0;
				if (here && active >> term & 1) {
					int2 range = load_const((const int2 *)p.ranges + (int64_t)term * p.tokens + row(tid));
					v = visible_keys(p, seq, {range.x, range.y}, load_const(&seq->i0) + token(tid), j0, kv_head) & ~seen;
				}
				store_shared(words + term * 64 + tid, v);
				seen |= v; // terms are disjoint; where they are not, the first counts
			}
			store_shared(any + tid, seen);
			found = seen != 0;
		}
		return sync_or(found);
	}

	// rows_of fills x with features d0 … d0+63 of the rows, of so many, turned as
	// variant v turns queries if it is not −1. It returns whether all is finite.
	DEV_METHOD bool rows_of(const lc_tensor &t, int d0, int features, int v) {
		bool finite = true;
		int head = load_const(&item->head);
		UNROLL_BY(1) for (int k = tid; k < 64 * (slice / 4); k += gradient_threads) {
			int r = k / (slice / 4), d = k % (slice / 4) * 4;
			float4 f = zeros();
			if (r < rows && d0 + d < features) {
				int64_t at = row(r) * t.row + head * t.head;
				auto load = [&](int e) { return load4(t, at, e, features); };
				if (v < 0 || p.rotary_dim == 0)
					f = load(d0 + d);
				else {
					int64_t pos = load_const(&seq->i0) + token(r);
					if (p.query_positions)
						pos = load_const((const int32_t *)p.query_positions + row(r));
					f = turned4(p, load, d0 + d, table_row(p.row_q, v, pos), false);
				}
			}
			finite &= finite4(f);
			store_shared((float4 *)(x + r * slice_row + d), f);
		}
		return finite;
	}

	DEV_METHOD int64_t key_row(int j, int v) const {
		int64_t pos = (int64_t)j0 + j;
		if (p.key_positions)
			pos = load_const((const int32_t *)p.key_positions + load_const(&seq->key_offset) + j0 + j);
		return table_row(p.row_k, v, pos);
	}

	// keys_of fills y with features of the keys likewise.
	DEV_METHOD bool keys_of(const lc_tensor &t, const lc_coded &coded, float f8, int d0, int features, int v) {
		bool finite = true;
		UNROLL_BY(1) for (int k = tid; k < 64 * (slice / 4); k += gradient_threads) {
			int j = k / (slice / 4), d = k % (slice / 4) * 4;
			float4 f = zeros();
			if (j < n && d0 + d < features) {
				Place at = load_shared(place + j);
				auto load = [&](int e) { return load_key4(t, coded, at, kv_head, e, features, f8); };
				f = v < 0 || !p.turns_keys ? load(d0 + d) : turned4(p, load, d0 + d, key_row(j, v), false);
			}
			finite &= finite4(f);
			store_shared((float4 *)(y + j * slice_row + d), f);
		}
		return finite;
	}

	// product sets s to the products of rows of t with the keys or values k.
	DEV_METHOD void product(const lc_tensor &t, const lc_tensor &k, const lc_coded &coded, const lc_scalars &scales, int features, int v) {
		float f8 = scales.data ? load_scalar(scales, kv_head, 0) : 1.0f;
		UNROLL for (int a = 0; a < 8; a++)
			UNROLL for (int c = 0; c < 4; c++) s[a][c] = 0.0f;
		UNROLL_BY(1) for (int d0 = 0; d0 < features; d0 += slice) {
			sync(); // the last slice is read
			rows_of(t, d0, features, v);
			keys_of(k, coded, f8, d0, features, v);
			sync();
			int have = features - d0 < slice ? features - d0 : slice;
			add_products<64>(s, x, y, gr, i, have);
		}
	}

	// scores fills w with the scores of the visible pairs, and with a soft cap g
	// with its hyperbolic tangent. A pair belongs to one thread in all of this.
	DEV_METHOD void scores() {
		for (int v = 0; v < p.terms; v++) {
			bool made = false;
			for (int term = v; term < p.terms; term++) {
				if (p.variant[term] != v || !(active >> term & 1))
					continue;
				if (!made)
					product(p.query, p.key, p.coded_key, p.key_scale, p.head_dim, v);
				made = true;
				take(term);
			}
		}
	}

	DEV_METHOD void take(int term) {
		bool modified = (p.scores & ~lc_sink_logit) != 0;
		UNROLL for (int a = 0; a < 8; a++) {
			int r = gr + 8 * a;
			uint64_t seen = load_shared(words + term * 64 + r);
			float f = load_shared(scale + term * 64 + r);
			UNROLL for (int c = 0; c < 4; c++)
				if (seen >> (i + 16 * c) & 1)
					store_shared(w + r * slice_row + i + 16 * c, modified ? s[a][c] : mul_(s[a][c], f));
		}
		if (!modified)
			return;
		int head = load_const(&item->head);
		UNROLL_BY(1) for (int k = 0; k < 32; k++) {
			int r = gr + 8 * (k / 4), key = i + 16 * (k % 4);
			if (!(load_shared(words + term * 64 + r) >> key & 1))
				continue;
			float *at = w + r * slice_row + key, a = load_shared(at), f = load_shared(scale + term * 64 + r);
			if (p.scores & lc_soft_cap)
				store_shared(g + r * slice_row + key, tanh_exact(mul_(mul_(a, f), p.inv_cap)));
			store_shared(at, score(p, a, f, head, load_const(&seq->i0) + token(r), (int64_t)j0 + key, load_const(&seq->key_offset)));
		}
	}

	// weigh makes weights of the scores in w, and with dP in s the gradients g.
	DEV_METHOD void weigh() {
		UNROLL for (int a = 0; a < 8; a++) {
			int r = gr + 8 * a;
			uint64_t seen = load_shared(any + r);
			float l = load_shared(lse + r), d = load_shared(delta + r);
			UNROLL for (int c = 0; c < 4; c++) {
				int key = i + 16 * c;
				float *at = w + r * slice_row + key, *to = g + r * slice_row + key;
				float e = -0.0f, z = -0.0f;
				if (seen >> key & 1) {
					e = exp2_exact(sub_(load_shared(at), l));
					if (q.stats)
						e = q.power == 2 ? mul_(e, e) : e;
					else {
						z = mul_(e, sub_(s[a][c], d));
						if (p.scores & lc_soft_cap) {
							float t = load_shared(to);
							z = mul_(z, fma_(-t, t, 1.0f));
						}
						z = add_(mul_(z, mul_(scale_of(r, key), ln_2())), 0.0f);
					}
				}
				store_shared(at, e);
				if (!q.stats)
					store_shared(to, z);
			}
		}
	}

	// scale_of is the scale of the Term that shows a pair.
	DEV_METHOD float scale_of(int r, int key) const {
		int term = 0;
		while (term < p.terms - 1 && !(load_shared(words + term * 64 + r) >> key & 1)) term++;
		return load_shared(scale + term * 64 + r);
	}

	// of_term leaves in w the gradients of the pairs of a Term, if there are
	// several, and returns where they are.
	DEV_METHOD const float *of_term(int term) {
		if (p.terms == 1)
			return g;
		sync(); // w is read
		UNROLL_BY(1) for (int k = tid; k < 64 * 64; k += gradient_threads) {
			int r = k / 64, key = k % 64;
			bool seen = load_shared(words + term * 64 + r) >> key & 1;
			store_shared(w + r * slice_row + key, seen ? load_shared(g + r * slice_row + key) : -0.0f);
		}
		return w;
	}

	// What this thread has of the sums of the block in the workspace: of slice x
	// of 64 features, eight rows of four.
	DEV_METHOD float4 *sum(int x, int k) const {
		return (float4 *)q.sums + (((int64_t)block_index() * q.slices + x) * 8 + k) * gradient_threads + tid;
	}
	DEV_METHOD void clear(int slices) {
		for (int x = 0; x < slices; x++)
			UNROLL for (int k = 0; k < 8; k++) store_global(sum(x, k), zeros());
	}

	// add_keys adds to the sums of slice at, for rows gr + 8k, weights times the
	// keys in y, ascending.
	template <Which W> DEV_METHOD void add_keys(const float *weights, int at) {
		float4 o[8];
		UNROLL for (int k = 0; k < 8; k++) o[k] = load_global((const float4 *)sum(at, k));
		add_weighted<W>(o, weights, y, gr, i, n);
		UNROLL for (int k = 0; k < 8; k++) store_global(sum(at, k), o[k]);
	}

	// add_rows adds to the sums of slice at, for keys 8·gr + k, weights times the
	// rows in x, ascending.
	template <Which W> DEV_METHOD void add_rows(const float *weights, int at) {
		float4 o[8];
		UNROLL for (int k = 0; k < 8; k++) o[k] = load_global((const float4 *)sum(at, k));
		add_columns<W>(o, weights, x, gr, i, rows);
		UNROLL for (int k = 0; k < 8; k++) store_global(sum(at, k), o[k]);
	}

	// add_row_slices adds weights times rows of t, slice by slice.
	DEV_METHOD void add_row_slices(const float *weights, const lc_tensor &t, int features, int v, int at) {
		UNROLL_BY(1) for (int d0 = 0; d0 < features; d0 += slice, at++) {
			sync(); // x is read, the weights are there
			if (sync_or(!rows_of(t, d0, features, v)))
				add_rows<seen_weights>(weights, at);
			else
				add_rows<all_weights>(weights, at);
		}
	}
	DEV_METHOD void add_key_slices(const float *weights, int v, int at) {
		UNROLL_BY(1) for (int d0 = 0; d0 < p.head_dim; d0 += slice, at++) {
			sync();
			if (sync_or(!keys_of(p.key, p.coded_key, 1.0f, d0, p.head_dim, v)))
				add_keys<seen_weights>(weights, at);
			else
				add_keys<all_weights>(weights, at);
		}
	}

	// weights computes all of the tile, if any row sees a key.
	DEV_METHOD bool weights() {
		if (!look())
			return false;
		scores();
		if (!q.stats)
			product(q.dout, p.value, p.coded_value, p.value_scale, p.value_dim, -1);
		weigh();
		sync();
		return true;
	}

	DEV_METHOD int head_slices() const { return (p.head_dim + slice - 1) / slice; }
	DEV_METHOD int value_slices() const { return (p.value_dim + slice - 1) / slice; }

	// A Term's sums as rows, in the workspace of the block: what a rotation back
	// needs, which takes features that other threads hold.
	DEV_METHOD float *turned(int term, int r) const {
		int64_t width = head_slices() * slice;
		return (float *)q.turned + (((int64_t)block_index() * p.terms + term) * 64 + r) * width;
	}
	DEV_METHOD void spread(bool keys) {
		for (int term = 0; term < p.terms; term++)
			for (int x = 0; x < head_slices(); x++)
				UNROLL for (int k = 0; k < 8; k++)
					store_global((float4 *)(turned(term, keys ? 8 * gr + k : gr + 8 * k) + slice * x + 4 * i), load_global((const float4 *)sum(term * head_slices() + x, k)));
		sync();
	}

	// store_turned turns the sums of row r back and stores the sum of the Terms.
	template <class Row> DEV_METHOD void store_turned(const lc_tensor &to, int64_t at, int r, bool turn, Row table) {
		for (int d = 4 * i; d < p.head_dim; d += slice) {
			float4 total = zeros();
			for (int term = 0; term < p.terms; term++) {
				const float *from = turned(term, r);
				auto load = [&](int e) { return load_global((const float4 *)(from + e)); };
				float4 f = turn ? turned4(p, load, d, table(term), true) : load(d);
				total = {add_(total.x, f.x), add_(total.y, f.y), add_(total.z, f.z), add_(total.w, f.w)};
			}
			store4(to, at, d, p.head_dim, total);
		}
	}

	// queries computes dQ of an item.
	DEV_METHOD void queries(const lc_item *it) {
		seq = (const lc_sequence *)p.sequences + load_const(&it->sequence);
		kv_head = load_const(&it->kv_head);
		set_rows(it, 0);
		clear(p.terms * head_slices());
		int64_t end = (int64_t)load_const(&item->chunk1) * lc_chunk, keys = load_const(&seq->keys);
		end = end < keys ? end : keys;
		for (int64_t j = (int64_t)load_const(&item->chunk0) * lc_chunk; j < end; j += lc_tile) {
			set_keys(j);
			if (!weights())
				continue;
			for (int term = 0; term < p.terms; term++)
				if (active >> term & 1)
					add_key_slices(of_term(term), p.variant[term], term * head_slices());
		}
		spread(false);
		int head = load_const(&item->head);
		for (int r = gr; r < rows; r += 8) {
			int64_t pos = load_const(&seq->i0) + token(r);
			if (p.query_positions)
				pos = load_const((const int32_t *)p.query_positions + row(r));
			store_turned(q.dquery, row(r) * q.dquery.row + head * q.dquery.head, r, p.rotary_dim > 0, [&](int term) { return table_row(p.row_q, term, pos); });
		}
		sync(); // the workspace is read
	}

	// set_span takes a tile of keys.
	DEV_METHOD void set_span(const lc_span *at) {
		seq = (const lc_sequence *)p.sequences + load_const(&at->sequence);
		kv_head = load_const(&at->kv_head);
		set_keys(load_const(&at->j0));
	}

	// keys computes dK and dV of a tile.
	DEV_METHOD void keys(const lc_span *at) {
		set_span(at);
		int values = p.terms * head_slices();
		clear(values + value_slices());
		const lc_item *blocks = (const lc_item *)q.blocks + load_const(&at->first);
		for (int b = 0; b < load_const(&at->blocks); b++) {
			set_rows(blocks + b, 0);
			if (!weights())
				continue;
			add_row_slices(w, q.dout, p.value_dim, -1, values);
			for (int term = 0; term < p.terms; term++)
				if (active >> term & 1)
					add_row_slices(of_term(term), p.query, p.head_dim, p.variant[term], term * head_slices());
		}
		spread(true);
		for (int k = 0; k < 8; k++) {
			int j = 8 * gr + k;
			if (j >= n)
				break;
			int64_t row = load_const(&seq->key_start) + j0 + j;
			store_turned(q.dkey, row * q.dkey.row + kv_head * q.dkey.head, j, p.turns_keys, [&](int term) { return key_row(j, term); });
			for (int x = 0; x < value_slices(); x++) {
				float4 f = load_global((const float4 *)sum(values + x, k));
				f = {add_(f.x, 0.0f), add_(f.y, 0.0f), add_(f.z, 0.0f), add_(f.w, 0.0f)};
				store4(q.dvalue, row * q.dvalue.row + kv_head * q.dvalue.head, slice * x + 4 * i, p.value_dim, f);
			}
		}
		sync();
	}

	// stats computes the sums of the weights of a tile.
	DEV_METHOD void stats(const lc_span *at) {
		set_span(at);
		int since = q.window > 0 ? load_const(&seq->queries) - q.window : 0;
		const lc_item *blocks = (const lc_item *)q.blocks + load_const(&at->first);
		int each = load_const(&at->blocks) / p.group; // of a head
		for (int h = 0; h < p.group; h++) {
			float total = 0.0f;
			for (int b = 0; b < each; b++) {
				const lc_item *it = blocks + h * each + b;
				if (load_const(&it->t0) + load_const(&it->tokens) <= since)
					continue;
				set_rows(it, since);
				if (!weights() || tid >= 64)
					continue;
				if (q.maximum) {
					for (int r = 0; r < rows; r++) {
						float f = load_shared(w + r * slice_row + tid);
						total = total != total || f <= total ? total : f;
					}
					continue;
				}
				UNROLL_BY(4) for (int r = 0; r < rows; r++) total = add_(total, load_shared(w + r * slice_row + tid));
			}
			if (tid < n)
				store_global((float *)q.out.data + (load_const(&seq->key_offset) + j0 + tid) * q.out.row + (kv_head * p.group + h) * q.out.col, total);
		}
	}
};

DEV void query_gradients(const lc_gradient_params &p) {
	Gradient a(p);
	for (int k = load_const(&((const lc_counts *)p.a.counts)->blocks) - 1 - block_index(); k >= 0; k -= grid_size()) // the last tokens see most
		a.queries((const lc_item *)p.blocks + k);
}

DEV void key_gradients(const lc_gradient_params &p) {
	Gradient a(p);
	int n = load_const(&((const lc_counts *)p.a.counts)->spans);
	for (int k = block_index(); k < n; k += grid_size()) a.keys((const lc_span *)p.spans + k);
}

DEV void column_stats(const lc_gradient_params &p) {
	Gradient a(p);
	int n = load_const(&((const lc_counts *)p.a.counts)->spans);
	for (int k = block_index(); k < n; k += grid_size()) a.stats((const lc_span *)p.spans + k);
}

// start_gradients computes delta, a row a thread.
DEV void start_gradients(const lc_gradient_params &p) {
	int64_t n = (int64_t)p.a.tokens * p.a.heads;
	for (int64_t k = (int64_t)block_index() * gradient_threads + thread_index(); k < n; k += (int64_t)grid_size() * gradient_threads) {
		int64_t t = k / p.a.heads;
		int h = (int)(k % p.a.heads);
		float sum = 0.0f;
		for (int d = 0; d < p.a.value_dim; d += 4) {
			float4 a = load4(p.dout, t * p.dout.row + h * p.dout.head, d, p.a.value_dim), b = load4(p.a.out, t * p.a.out.row + h * p.a.out.head, d, p.a.value_dim);
			sum = fma_(a.w, b.w, fma_(a.z, b.z, fma_(a.y, b.y, fma_(a.x, b.x, sum))));
		}
		if (p.dlse.data)
			sum = sub_(sum, load_scalar(p.dlse, t, h));
		store_global((float *)p.delta + k, sum);
	}
}
