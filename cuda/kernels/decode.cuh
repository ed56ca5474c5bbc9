// Attention of few rows under the Exact policy: what attention.cuh computes, for
// up to R rows of one Term, keys that need no rotation, plain pages, and at most
// 128 features in rows of whole units of 16 bytes. It reads keys and values once
// and has little else to do, so it is laid out for the memory: tiles of 64 keys,
// then of 64 values, come through a ring of three, as they are stored.
//
//	scores   thread (h, j) has key j of the tile and rows h·R/2 …: it reads a whole key
//	maxima   thread (r, tile) of a chunk; then those of the tiles before, in order
//	weights  all threads, all keys of the chunk
//	sums     one thread a row, keys ascending
//	outputs  thread d has feature d of all rows
//
// Each chunk is a part, merged by attention_merge.
#pragma once

#include "rotary.cuh"
#include "score.cuh"
#include "visible.cuh"

enum { decode_threads = 128, decode_stages = 3, chunk_tiles = lc_chunk / lc_tile, query_floats = 128 + 4 };

template <int R> struct Decode {
	const lc_attention_params &p;
	const lc_item *item;
	const lc_sequence *seq;
	int tid, rows, keys; // keys of the chunk
	int64_t first;       // key of the chunk

	float *q;        // [R][query_floats]
	float *w;        // [lc_chunk][R] scores, then weights
	float *top;      // [R][chunk_tiles] maxima, of a tile and then of all up to it
	float *factor;   // [R][chunk_tiles]
	Place *place;    // [lc_chunk]
	uint64_t *words; // [R][chunk_tiles] visible keys
	char *ring;      // [decode_stages][lc_tile] rows of stride bytes
	int stride;

	DEV_METHOD Decode(const lc_attention_params &params) : p(params), tid(thread_index()) {
		q = (float *)shared_memory();
		w = q + R * query_floats;
		top = w + lc_chunk * R;
		factor = top + R * chunk_tiles;
		place = (Place *)(factor + R * chunk_tiles);
		words = (uint64_t *)(place + lc_chunk);
		ring = (char *)(words + R * chunk_tiles);
		stride = lc_decode_stride(element_bytes(p.key.dtype));
	}

	DEV_METHOD int head(int r) const { return load_const(&item->head) + r % load_const(&item->heads); }
	DEV_METHOD int token(int r) const { return load_const(&item->t0) + r / load_const(&item->heads); }

	DEV_METHOD void load_queries() {
		int start = load_const(&seq->query_start);
		for (int k = tid; k < R * 32; k += decode_threads) {
			int r = k / 32, d = k % 32 * 4;
			float4 x = zeros();
			if (r < rows)
				x = load4(p.query, (start + token(r)) * p.query.row + head(r) * p.query.head, d, p.head_dim);
			store_shared((float4 *)(q + r * query_floats + d), x);
		}
		if (p.rotary_dim == 0)
			return;
		sync();
		int half = p.rotary_dim / 2;
		for (int k = tid; k < rows * half; k += decode_threads) {
			int r = k / half;
			int64_t x = load_const(&seq->i0) + token(r);
			if (p.query_positions)
				x = load_const((const int32_t *)p.query_positions + start + token(r));
			rotate_pair(p, q + r * query_floats, k % half, table_row(p.row_q, 0, x));
		}
	}

	// look finds the places of the chunk's keys, and which of them each row sees.
	DEV_METHOD void look() {
		for (int k = tid; k < keys; k += decode_threads) {
			int64_t j = first + k;
			Place at = {(int)(load_const(&seq->key_start) + j), 0};
			if (p.page_size > 0) {
				at.y = (int)(j % p.page_size);
				at.x = load_const((const int32_t *)p.pages + load_const(&seq->key_start) + j / p.page_size);
			}
			store_shared(place + k, at);
		}
		for (int k = tid; k < R * chunk_tiles; k += decode_threads) {
			int r = k / chunk_tiles;
			uint64_t seen = 0;
			if (r < rows) {
				int2 x = load_const((const int2 *)p.ranges + load_const(&seq->query_start) + token(r));
				seen = visible_keys(p, seq, {x.x, x.y}, load_const(&seq->i0) + token(r), first + k % chunk_tiles * lc_tile, load_const(&item->kv_head));
			}
			store_shared(words + k, seen);
		}
	}

	DEV_METHOD char *slot(int n) const { return ring + n % decode_stages * lc_tile * stride; }

	// fetch asks for tile n of the chunk: first come those of the keys, then those
	// of the values. Past the last it asks for nothing.
	DEV_METHOD void fetch(int n) {
		int tiles = (keys + lc_tile - 1) / lc_tile;
		if (n < 2 * tiles) {
			const lc_tensor &x = n < tiles ? p.key : p.value;
			int bytes = element_bytes(x.dtype), units = (n < tiles ? p.head_dim : p.value_dim) * bytes / 16;
			const char *base = (const char *)x.data + load_const(&item->kv_head) * x.head * bytes;
			int k0 = (n < tiles ? n : n - tiles) * lc_tile;
			for (int k = tid; k < lc_tile * units; k += decode_threads) {
				int j = k / units, u = k % units;
				if (k0 + j >= keys)
					break;
				Place at = load_shared(place + k0 + j);
				copy_async(slot(n) + j * stride + 16 * u, base + (at.x * x.row + at.y * x.slot) * bytes + 16 * u);
			}
		}
		copy_commit(); // an empty group too: they are counted
	}

	// scores sets those of tile n.
	DEV_METHOD void scores(int n) {
		const int each = R / 2;
		int j = tid % lc_tile, r0 = tid / lc_tile * each, k = n * lc_tile + j;
		if (k >= keys)
			return;
		float a[each];
		UNROLL for (int r = 0; r < each; r++) a[r] = 0.0f;
		int per = 16 / element_bytes(p.key.dtype), units = p.head_dim / per;
		const char *row = slot(n) + j * stride;
		float f = p.key_scale.data ? load_scalar(p.key_scale, load_const(&item->kv_head), 0) : 1.0f;
		UNROLL_BY(2) for (int u = 0; u < units; u++) {
			uint4 raw = load_shared((const uint4 *)(row + 16 * u));
			for (int e = 0; e < per / 4; e++) {
				float4 x = p.key.dtype == lc_f32 ? float4{from_bits(raw.x), from_bits(raw.y), from_bits(raw.z), from_bits(raw.w)} : widen4(p.key.dtype, raw, e);
				if (p.key.dtype >= lc_f8e4m3)
					x = scaled(x, f);
				UNROLL for (int r = 0; r < each; r++) {
					float4 y = load_shared((const float4 *)(q + (r0 + r) * query_floats + u * per + 4 * e));
					a[r] = fma_(x.x, y.x, a[r]);
					a[r] = fma_(x.y, y.y, a[r]);
					a[r] = fma_(x.z, y.z, a[r]);
					a[r] = fma_(x.w, y.w, a[r]);
				}
			}
		}
		UNROLL for (int r = 0; r < each; r++) {
			float t = 0.0f;
			if (load_shared(words + (r0 + r) * chunk_tiles + n) >> j & 1) {
				float scale = load_const((const float *)p.scales + load_const(&seq->query_start) + token(r0 + r));
				t = score(p, a[r], scale, head(r0 + r), load_const(&seq->i0) + token(r0 + r), first + k, load_const(&seq->key_offset));
			}
			store_shared(w + k * R + r0 + r, t);
		}
	}

	// weigh makes weights of all scores of the chunk.
	DEV_METHOD void weigh(int tiles) {
		if (tid < R * chunk_tiles) {
			int r = tid % R, n = tid / R;
			uint64_t seen = n < tiles ? load_shared(words + r * chunk_tiles + n) : 0;
			float m = max_start();
			for (int j = 0; j < lc_tile; j++)
				if (seen >> j & 1)
					m = max_(m, load_shared(w + (n * lc_tile + j) * R + r));
			store_shared(top + r * chunk_tiles + n, m);
		}
		sync();
		if (tid < R) {
			float m = max_start();
			for (int n = 0; n < chunk_tiles; n++) {
				float next = max_(m, load_shared(top + tid * chunk_tiles + n));
				store_shared(factor + tid * chunk_tiles + n, exp2_exact(sub_(m, next)));
				store_shared(top + tid * chunk_tiles + n, next);
				m = next;
			}
		}
		sync();
		for (int k = tid; k < tiles * lc_tile * R; k += decode_threads) {
			int r = k % R, n = k / R / lc_tile, j = k / R % lc_tile;
			float x = -0.0f;
			if (load_shared(words + r * chunk_tiles + n) >> j & 1)
				x = exp2_exact(sub_(load_shared(w + k), load_shared(top + r * chunk_tiles + n)));
			store_shared(w + k, x);
		}
		sync();
	}

	// sum stores the maximum and the denominator of each row.
	DEV_METHOD void sum(int tiles, float *part) {
		int r = tid;
		if (r >= rows)
			return;
		float l = 0.0f;
		for (int n = 0; n < tiles; n++) {
			l = mul_(l, load_shared(factor + r * chunk_tiles + n));
			UNROLL_BY(8) for (int j = 0; j < lc_tile; j++) l = add_(l, load_shared(w + (n * lc_tile + j) * R + r));
		}
		float *m = part + p.part_rows * p.part_dim;
		store_global(m + r, load_shared(top + r * chunk_tiles + chunk_tiles - 1));
		store_global(m + p.part_rows + r, l);
	}

	// add adds the weighted values of tile n of the chunk, which lie in slot at.
	DEV_METHOD void add(float (&o)[R], int n, int at) {
		UNROLL for (int r = 0; r < R; r++) o[r] = mul_(o[r], load_shared(factor + r * chunk_tiles + n));
		int have = keys - n * lc_tile < lc_tile ? keys - n * lc_tile : (int)lc_tile;
		if (tid >= p.value_dim)
			return;
		float f = p.value_scale.data ? load_scalar(p.value_scale, load_const(&item->kv_head), 0) : 1.0f;
		const char *row = slot(at);
		UNROLL_BY(4) for (int j = 0; j < have; j++, row += stride) {
			float v;
			if (p.value.dtype == lc_f32)
				v = load_shared((const float *)row + tid);
			else if (p.value.dtype <= lc_bf16)
				v = widen(p.value.dtype, load_shared((const uint16_t *)row + tid));
			else
				v = mul_(widen(p.value.dtype, load_shared((const uint8_t *)row + tid)), f);
			bool finite = sub_(v, v) == 0.0f;
			UNROLL for (int r = 0; r < R; r += 4) {
				float4 x = load_shared((const float4 *)(w + (n * lc_tile + j) * R + r));
				o[r] = weighted(v, x.x, o[r], finite);
				o[r + 1] = weighted(v, x.y, o[r + 1], finite);
				o[r + 2] = weighted(v, x.z, o[r + 2], finite);
				o[r + 3] = weighted(v, x.w, o[r + 3], finite);
			}
		}
	}

	DEV_METHOD static float weighted(float v, float x, float o, bool finite) {
		return finite || as_bits(x) != 0x80000000u ? fma_(v, x, o) : o;
	}

	// chunk computes the state of chunk c and stores it as a part.
	DEV_METHOD void chunk(int c, float *part) {
		first = (int64_t)c * lc_chunk;
		int64_t left = load_const(&seq->keys) - first;
		keys = left < lc_chunk ? (int)left : (int)lc_chunk;
		int tiles = (keys + lc_tile - 1) / lc_tile;
		look();
		sync(); // the places are there, and the chunk before is done
		fetch(0);
		fetch(1);
		for (int n = 0; n < tiles; n++) {
			copy_wait_but<1>();
			sync(); // the tile is there, and the one before is read
			fetch(n + 2);
			scores(n);
		}
		sync();
		weigh(tiles);
		sum(tiles, part);
		float o[R];
		UNROLL for (int r = 0; r < R; r++) o[r] = 0.0f;
		for (int n = 0; n < tiles; n++) {
			copy_wait_but<1>();
			sync();
			fetch(tiles + n + 2);
			add(o, n, tiles + n);
		}
		copy_wait();
		if (tid < p.value_dim)
			UNROLL for (int r = 0; r < R; r++)
				if (r < rows)
					store_global(part + r * p.part_dim + tid, o[r]);
	}

	DEV_METHOD void run(const lc_item *it) {
		item = it;
		seq = (const lc_sequence *)p.sequences + load_const(&it->sequence);
		rows = load_const(&it->tokens) * load_const(&it->heads);
		load_queries();
		int chunk0 = load_const(&it->chunk0), chunk1 = load_const(&it->chunk1);
		int64_t size = (int64_t)p.part_rows * (p.part_dim + 2);
		for (int c = chunk0; c < chunk1; c++)
			chunk(c, (float *)p.parts + (load_const(&it->part) + c - chunk0) * size);
	}
};

template <int R> DEV void decode(const lc_attention_params &p) {
	Decode<R> a(p);
	int items = load_const(&((const lc_counts *)p.counts)->items);
	for (int k = block_index(); k < items; k += grid_size())
		a.run((const lc_item *)p.items + k);
}
