// The squared differences between the scores of two models, and their gradient:
// rule 23 of package kernel.
//
// A block of 128 threads meets 64 queries of a head with 64 keys: the products of
// both models, 64 features at a time through shared memory as in scores.cuh, then
// the differences, which stay there. loss_queries owns the queries and goes
// through the keys ascending; loss_keys owns keys of a KV head of Student and goes
// through the heads of its group and their queries ascending. So each sum has one
// owner and one order, without atomics and without a buffer of scores. Sums of
// gradients lie in DQuery and DKey themselves, where each thread reads only what
// it wrote: a tile of 64 × 64 × 64 products reads and writes 32 KB in the
// second-level cache.
//
// FLOPs for each pair and head: 2·(dim of Student + dim of Teacher) for the loss;
// with the gradient both passes do that, and each 2·dim of Student more.
//
// Ladder: not measured on a device yet.
#pragma once

#include "exact.cuh"
#include "product.cuh"
#include "tensor.cuh"

struct Loss {
	const lc_loss_params &p;
	float *x, *y;   // [64][slice_row] features of queries, of keys
	float *w;       // [64][slice_row] of a query and key
	int tid, gr, i; // thread, row group, place in the group
	float s[8][4];  // of queries gr + 8a and keys i + 16c

	int sequence, head;
	int64_t t0, k0; // rows of the first query and key of the tile
	int rows, n;    // queries and keys of it

	DEV_METHOD Loss(const lc_loss_params &params) : p(params) {
		x = (float *)shared_memory();
		y = x + 64 * slice_row;
		w = y + 64 * slice_row;
		tid = thread_index(), gr = tid / 16, i = tid % 16;
	}

	// tile_of sets the rows of a tile, of the sequence's.
	DEV_METHOD int tile_of(uint64_t starts, int64_t tile, int64_t &first) const {
		const int32_t *at = (const int32_t *)starts + sequence;
		first = load_const(at) + tile * lc_tile;
		int64_t left = load_const(at + 1) - first;
		return left < 0 ? 0 : left < lc_tile ? (int)left : (int)lc_tile;
	}
	DEV_METHOD int64_t tiles(uint64_t starts) const {
		const int32_t *at = (const int32_t *)starts + sequence;
		return ((int64_t)load_const(at + 1) - load_const(at) + lc_tile - 1) / lc_tile;
	}

	// fill loads features from d0 of some rows of a tensor, zeros past them.
	DEV_METHOD void fill(float *to, const lc_tensor &t, int64_t row, int count, int of_head, int d0, int features) {
		UNROLL_BY(4) for (int k = tid; k < 64 * (slice / 4); k += product_threads) {
			int r = k / (slice / 4), d = k % (slice / 4) * 4;
			store_shared((float4 *)(to + r * slice_row + d), r < count ? load4(t, (row + r) * t.row + of_head * t.head, d0 + d, features) : zeros());
		}
	}

	// scores leaves in s those of a model.
	DEV_METHOD void scores(const lc_score_side &side) {
		UNROLL for (int a = 0; a < 8; a++)
			UNROLL for (int c = 0; c < 4; c++) s[a][c] = 0.0f;
		UNROLL_BY(1) for (int d0 = 0; d0 < side.features; d0 += slice) {
			sync(); // the last slice is read
			fill(x, side.query, t0, rows, head, d0, side.features);
			fill(y, side.key, k0, n, head / side.group, d0, side.features);
			sync();
			add_products<64>(s, x, y, gr, i, side.features - d0 < slice ? side.features - d0 : (int)slice);
		}
		UNROLL for (int a = 0; a < 8; a++)
			UNROLL for (int c = 0; c < 4; c++) s[a][c] = mul_(s[a][c], side.scale);
	}

	DEV_METHOD bool is_zeroed(float f) const { return p.zero_below < 0.0f && f <= p.zero_below; }

	// differences leaves them in s and in w, and returns which scores of Student were
	// set to 0.
	DEV_METHOD unsigned differences() {
		unsigned zeroed = 0;
		scores(p.teacher);
		UNROLL for (int a = 0; a < 8; a++)
			UNROLL for (int c = 0; c < 4; c++) store_shared(w + (gr + 8 * a) * slice_row + i + 16 * c, s[a][c]); // a pair belongs to one thread
		scores(p.student);
		UNROLL for (int a = 0; a < 8; a++)
			UNROLL for (int c = 0; c < 4; c++) {
				float *at = w + (gr + 8 * a) * slice_row + i + 16 * c, other = load_shared(at);
				if (is_zeroed(s[a][c])) {
					s[a][c] = 0.0f;
					zeroed |= 1u << (4 * a + c);
				}
				s[a][c] = sub_(s[a][c], is_zeroed(other) ? 0.0f : other);
				store_shared(at, s[a][c]);
			}
		return zeroed;
	}

	// weigh makes gradients of the scores of the differences, in w.
	DEV_METHOD void weigh(unsigned zeroed) {
		UNROLL for (int a = 0; a < 8; a++)
			UNROLL for (int c = 0; c < 4; c++)
				store_shared(w + (gr + 8 * a) * slice_row + i + 16 * c, zeroed >> (4 * a + c) & 1 ? 0.0f : mul_(s[a][c], p.gradient));
	}

	// add_keys adds to DQuery what the keys of the tile give, ascending.
	DEV_METHOD void add_keys(bool first) {
		int features = p.student.features;
		UNROLL_BY(1) for (int d0 = 0; d0 < features; d0 += slice) {
			sync(); // y is read, the weights are there
			fill(y, p.student.key, k0, n, head / p.student.group, d0, features);
			sync();
			float4 o[8];
			UNROLL for (int k = 0; k < 8; k++) {
				int r = gr + 8 * k;
				o[k] = first || r >= rows ? zeros() : load4<false>(p.dquery, (t0 + r) * p.dquery.row + head * p.dquery.head, d0 + 4 * i, features);
			}
			add_weighted<all_weights>(o, w, y, gr, i, n);
			UNROLL for (int k = 0; k < 8; k++) {
				int r = gr + 8 * k;
				if (r < rows)
					store4(p.dquery, (t0 + r) * p.dquery.row + head * p.dquery.head, d0 + 4 * i, features, o[k]);
			}
		}
	}

	// add_queries adds to DKey what the queries of the tile give, ascending.
	DEV_METHOD void add_queries(int kv_head, bool first) {
		int features = p.student.features;
		UNROLL_BY(1) for (int d0 = 0; d0 < features; d0 += slice) {
			sync();
			fill(x, p.student.query, t0, rows, head, d0, features);
			sync();
			float4 o[8];
			UNROLL for (int k = 0; k < 8; k++) {
				int j = 8 * gr + k;
				o[k] = first || j >= n ? zeros() : load4<false>(p.dkey, (k0 + j) * p.dkey.row + kv_head * p.dkey.head, d0 + 4 * i, features);
			}
			add_columns<all_weights>(o, w, x, gr, i, rows);
			UNROLL for (int k = 0; k < 8; k++) {
				int j = 8 * gr + k;
				if (j < n)
					store4(p.dkey, (k0 + j) * p.dkey.row + kv_head * p.dkey.head, d0 + 4 * i, features, o[k]);
			}
		}
	}

	// nothing writes zeros to rows of a gradient that no pair adds to.
	DEV_METHOD void nothing_of(const lc_tensor &t, int64_t row, int count, int of_head) {
		for (int k = tid; k < count * p.student.features; k += product_threads)
			store_element(t, (row + k / p.student.features) * t.row + of_head * t.head + k % p.student.features * t.dim, 0.0f);
	}

	// queries computes an item of loss_queries: Out, and DQuery if it is asked for.
	DEV_METHOD void queries(int64_t item) {
		head = (int)(item / p.tiles % p.heads);
		sequence = (int)(item / p.tiles / p.heads);
		rows = tile_of(p.query_start, item % p.tiles, t0);
		if (rows == 0)
			return;
		float sum = 0.0f;
		int64_t all = tiles(p.key_start);
		for (int64_t tile = 0; tile < all; tile++) {
			n = tile_of(p.key_start, tile, k0);
			unsigned zeroed = differences();
			sync(); // the differences are there
			if (tid < rows)
				UNROLL_BY(4) for (int j = 0; j < n; j++) {
					float e = load_shared(w + tid * slice_row + j);
					sum = fma_(e, e, sum);
				}
			if (!p.dquery.data)
				continue;
			sync(); // and read
			weigh(zeroed);
			add_keys(tile == 0);
		}
		if (all == 0 && p.dquery.data)
			nothing_of(p.dquery, t0, rows, head);
		if (tid < rows)
			store_global((float *)p.out.data + (t0 + tid) * p.out.row + head * p.out.col, sum);
	}

	// keys computes an item of loss_keys: DKey.
	DEV_METHOD void keys(int64_t item) {
		int group = p.student.group, kv_heads = p.heads / group, kv_head = (int)(item / p.tiles % kv_heads);
		sequence = (int)(item / p.tiles / kv_heads);
		n = tile_of(p.key_start, item % p.tiles, k0);
		if (n == 0)
			return;
		int64_t all = tiles(p.query_start);
		for (int h = 0; h < group; h++) {
			head = kv_head * group + h;
			for (int64_t tile = 0; tile < all; tile++) {
				rows = tile_of(p.query_start, tile, t0);
				weigh(differences());
				add_queries(kv_head, h == 0 && tile == 0);
			}
		}
		if (all == 0)
			nothing_of(p.dkey, k0, n, kv_head);
	}
};

DEV void loss_queries(const lc_loss_params &p) {
	Loss a(p);
	for (int64_t k = block_index(); k < p.items; k += grid_size()) a.queries(k);
}

DEV void loss_keys(const lc_loss_params &p) {
	Loss a(p);
	for (int64_t k = block_index(); k < p.items; k += grid_size()) a.keys(k);
}
