// Attention of few rows under the Exact policy: what attention.cuh computes, for
// up to R rows of one Term, keys that need no rotation, plain pages, and at most
// Dim features in rows of whole units of 16 bytes. It reads keys and values once
// and has little else to do, so it is laid out for the memory, and then for the
// loads from shared memory, which come next: a block is one warp, and what a
// lane loads it uses for several rows or keys.
//
//	scores   lane i has keys i and 32+i of the tile and all rows: 2·R products for R + 2 loads
//	maxima   of a tile by shuffles; then those of the tiles before, in order
//	weights  lane i has keys i and 32+i of each tile
//	outputs  lane i has features 4i … 4i+3 of all rows, keys ascending; and their sums
//
// Tiles of 64 keys, then of 64 values, come through a ring of two, as they are
// stored. Tiles that no row sees are not read. Each chunk is a part, merged by
// attention_merge.
//
// Versions, by the cycles that a tile of 64 keys of 128 features in F16 and its
// values take, for 4 rows, beside 1580 that its bytes take of one of 132 shares of
// 4.8 TB/s at 1.755 GHz. They are counted, not timed: 128 bytes of shared memory a
// cycle, and an instruction a cycle and quarter of a multiprocessor.
//
//	                                                      shared memory  instructions
//	128 threads; 2 rows of a key, then a feature of 4 rows           2560             –
//	32 threads; 4 rows of 2 keys, then 4 features of 4 rows          1024          1100
#pragma once

#include "rotary.cuh"
#include "score.cuh"
#include "visible.cuh"

enum { decode_threads = 32, decode_stages = 2, chunk_tiles = lc_chunk / lc_tile };

// Self is the kind of decoding that is derived from this: it may load and use
// tiles in its own way.
template <int R, int Dim, class Self> struct Decode {
	enum { Row = Dim + 4, Units = Dim / 128, Fours = R / 4 };

	const lc_attention_params &p;
	const lc_item *item;
	const lc_sequence *seq;
	int lane, rows, keys; // keys of the chunk
	int64_t first;        // key of the chunk

	float *q;        // [R][Row]
	float *w;        // [lc_chunk][R] scores, then weights
	float *top;      // [chunk_tiles][R] maxima, of a tile and then of all up to it
	float *factor;   // [chunk_tiles][R]
	Place *place;    // [lc_chunk]
	uint64_t *words; // [chunk_tiles][R] visible keys
	char *ring;      // [decode_stages][lc_tile] rows of stride bytes
	int stride;

	int tiles;     // that some row sees
	uint32_t list; // of them, 4 bits each
	uint32_t full; // bits of the tiles that all rows see whole

	DEV_METHOD Decode(const lc_attention_params &params) : p(params), lane(thread_index()) {
		q = (float *)shared_memory();
		w = q + R * Row;
		top = w + lc_chunk * R;
		factor = top + R * chunk_tiles;
		place = (Place *)(factor + R * chunk_tiles);
		words = (uint64_t *)(place + lc_chunk);
		ring = (char *)(words + R * chunk_tiles);
		stride = lc_decode_stride(Dim, element_bytes(p.key.dtype));
	}

	DEV_METHOD Self &self() { return *(Self *)this; }

	DEV_METHOD int head(int r) const { return load_const(&item->head) + r % load_const(&item->heads); }
	DEV_METHOD int token(int r) const { return load_const(&item->t0) + r / load_const(&item->heads); }

	DEV_METHOD void load_queries() {
		int start = load_const(&seq->query_start);
		for (int k = lane; k < R * Dim / 4; k += decode_threads) {
			int r = k / (Dim / 4), d = k % (Dim / 4) * 4;
			float4 x = zeros();
			if (r < rows)
				x = load4(p.query, (start + token(r)) * p.query.row + head(r) * p.query.head, d, p.head_dim);
			store_shared((float4 *)(q + r * Row + d), x);
		}
		if (p.rotary_dim == 0)
			return;
		sync_warp();
		int half = p.rotary_dim / 2;
		for (int k = lane; k < rows * half; k += decode_threads) {
			int r = k / half;
			int64_t x = load_const(&seq->i0) + token(r);
			if (p.query_positions)
				x = load_const((const int32_t *)p.query_positions + start + token(r));
			rotate_pair(p, q + r * Row, k % half, table_row(p.row_q, 0, x));
		}
	}

	// look finds the places of the chunk's keys, and which of them each row sees.
	DEV_METHOD void look() {
		uint32_t start = (uint32_t)first, size = (uint32_t)p.page_size;
		for (int k = lane; k < keys; k += decode_threads) {
			uint32_t j = start + k;
			Place at = {(int)(load_const(&seq->key_start) + j), 0};
			if (size > 0) {
				at.y = (int)(j % size);
				at.x = load_const((const int32_t *)p.pages + load_const(&seq->key_start) + j / size);
			}
			store_shared(place + k, at);
		}
		for (int k = lane; k < R * chunk_tiles; k += decode_threads) {
			int r = k % R;
			uint64_t seen = 0;
			if (r < rows) {
				int2 x = load_const((const int2 *)p.ranges + load_const(&seq->query_start) + token(r));
				seen = visible_keys(p, seq, {x.x, x.y}, load_const(&seq->i0) + token(r), first + k / R * lc_tile, load_const(&item->kv_head));
			}
			store_shared(words + k, seen);
		}
		sync_warp();
		tiles = 0, list = full = 0;
		for (int n = 0; n < chunk_tiles; n++) {
			uint64_t any = 0, all = ~0ull;
			UNROLL for (int r = 0; r < R; r++) {
				uint64_t seen = load_shared(words + n * R + r);
				any |= seen;
				all &= r < rows ? seen : ~0ull;
			}
			if (any != 0)
				list |= (uint32_t)n << 4 * tiles++;
			full |= (all == ~0ull ? 1u : 0u) << n;
		}
	}

	DEV_METHOD int tile(int k) const { return (int)(list >> 4 * k & 15); }
	// size is the keys of tile n.
	DEV_METHOD int size(int n) const { return keys - n * lc_tile < lc_tile ? keys - n * lc_tile : (int)lc_tile; }
	DEV_METHOD char *slot(int k) const { return ring + k % decode_stages * lc_tile * stride; }

	// lanes is the number of them that copy a row of so many units, as a shift.
	DEV_METHOD static int lanes(int units) {
		int shift = 0;
		while (1 << shift < units && shift < 5)
			shift++;
		return shift;
	}

	// fetch asks for what comes k-th: first come the tiles of keys, then those of
	// values. Past the last it asks for nothing. A row of the tensor has so many
	// lanes that it takes a power of two.
	DEV_METHOD void fetch(int k) {
		if (k < 2 * tiles) {
			const lc_tensor &x = k < tiles ? p.key : p.value;
			int bytes = element_bytes(x.dtype), units = (k < tiles ? p.head_dim : p.value_dim) * bytes / 16;
			const char *base = (const char *)x.data + load_const(&item->kv_head) * x.head * bytes;
			int n = tile(k < tiles ? k : k - tiles), k0 = n * lc_tile, have = size(n);
			int shift = lanes(units), u0 = lane & ((1 << shift) - 1);
			for (int j = lane >> shift; j < have; j += decode_threads >> shift) {
				Place at = load_shared(place + k0 + j);
				const char *from = base + (at.x * x.row + at.y * x.slot) * bytes;
				char *to = self().slot(k) + j * stride;
				for (int u = u0; u < units; u += decode_threads)
					copy_async(to + 16 * u, from + 16 * u);
			}
		}
		copy_commit(); // an empty group too: they are counted
	}

	// four is elements 4e … 4e+3 of 16 bytes of a row.
	template <int Type> DEV_METHOD static float4 four(uint4 raw, int e) {
		return Type == lc_f32 ? float4{from_bits(raw.x), from_bits(raw.y), from_bits(raw.z), from_bits(raw.w)} : widen4(Type, raw, e);
	}

	// scores sets those of the k-th tile and its maxima.
	DEV_METHOD void scores(int k) {
		float a[2][R];
		self().products(k, a);
		finish(tile(k), a);
	}

	DEV_METHOD void products(int k, float (&a)[2][R]) {
		switch (p.key.dtype) {
		case lc_f32:
			return dot<lc_f32>(k, a);
		case lc_f16:
			return dot<lc_f16>(k, a);
		case lc_bf16:
			return dot<lc_bf16>(k, a);
		case lc_f8e4m3:
			return dot<lc_f8e4m3>(k, a);
		}
		dot<lc_f8e5m2>(k, a);
	}

	// dot sets the products of the k-th tile. What keys past the last have is of
	// no meaning, and nothing looks at it.
	template <int Type> DEV_METHOD void dot(int k, float (&a)[2][R]) {
		enum { Per = Type == lc_f32 ? 4 : Type <= lc_bf16 ? 8 : 16 };
		UNROLL for (int r = 0; r < R; r++) a[0][r] = a[1][r] = 0.0f;
		const char *row = self().slot(k) + lane * stride;
		float f = Type >= lc_f8e4m3 && p.key_scale.data ? load_scalar(p.key_scale, load_const(&item->kv_head), 0) : 1.0f;
		int units = p.head_dim / Per;
		for (int u = 0; u < units; u++) {
			uint4 raw[2] = {load_shared((const uint4 *)(row + 16 * u)), load_shared((const uint4 *)(row + 32 * stride + 16 * u))};
			UNROLL for (int e = 0; e < Per / 4; e++) {
				float4 x[2] = {four<Type>(raw[0], e), four<Type>(raw[1], e)};
				if (Type >= lc_f8e4m3)
					x[0] = scaled(x[0], f), x[1] = scaled(x[1], f);
				multiply(a, x, u * Per + 4 * e);
			}
		}
	}

	// multiply adds the products of features d … d+3.
	DEV_METHOD void multiply(float (&a)[2][R], const float4 (&x)[2], int d) {
		UNROLL for (int r = 0; r < R; r++) {
			float4 y = load_shared((const float4 *)(q + r * Row + d));
			UNROLL for (int h = 0; h < 2; h++) {
				a[h][r] = fma_(x[h].x, y.x, a[h][r]);
				a[h][r] = fma_(x[h].y, y.y, a[h][r]);
				a[h][r] = fma_(x[h].z, y.z, a[h][r]);
				a[h][r] = fma_(x[h].w, y.w, a[h][r]);
			}
		}
	}

	DEV_METHOD float scale(int r) const { return r < rows ? load_const((const float *)p.scales + load_const(&seq->query_start) + token(r)) : 0.0f; }

	// finish makes scores of the products of tile n, and finds the maxima of those
	// that are seen.
	DEV_METHOD void finish(int n, float (&a)[2][R]) {
		float *at = w + (n * lc_tile + lane) * R; // of the first key; that of the second is 32·R further
		if (p.scores & ~lc_sink_logit) { // by way of shared memory, for the sake of registers
			put(at, a);
			for (int k = 0; k < 2 * rows; k++) {
				int r = k / 2, h = k % 2;
				float t = score(p, load_shared(at + 32 * h * R + r), scale(r), head(r), load_const(&seq->i0) + token(r), first + n * lc_tile + lane + 32 * h, load_const(&seq->key_offset));
				store_shared(at + 32 * h * R + r, t);
			}
			UNROLL for (int r = 0; r < R; r++) a[0][r] = load_shared(at + r), a[1][r] = load_shared(at + 32 * R + r);
		} else {
			UNROLL for (int r = 0; r < R; r++) {
				float f = scale(r);
				a[0][r] = mul_(a[0][r], f), a[1][r] = mul_(a[1][r], f);
			}
			put(at, a);
		}
		UNROLL for (int r = 0; r < R; r++) {
			uint64_t seen = load_shared(words + n * R + r);
			float m = max_start();
			m = seen >> lane & 1 ? max_(m, a[0][r]) : m;
			m = seen >> (lane + 32) & 1 ? max_(m, a[1][r]) : m;
			UNROLL for (int mask = 1; mask < 32; mask *= 2) m = max_(m, shuffle_xor(m, mask));
			if (lane == r)
				store_shared(top + n * R + r, m);
		}
	}

	DEV_METHOD static void put(float *at, float (&a)[2][R]) {
		UNROLL for (int h = 0; h < 2; h++)
			UNROLL for (int k = 0; k < Fours; k++) store_shared((float4 *)(at + 32 * h * R) + k, float4{a[h][4 * k], a[h][4 * k + 1], a[h][4 * k + 2], a[h][4 * k + 3]});
	}

	// weigh makes weights of all scores of the chunk.
	DEV_METHOD void weigh() {
		if (lane < R) {
			float m = max_start();
			for (int k = 0; k < tiles; k++) {
				int at = tile(k) * R + lane;
				float next = max_(m, load_shared(top + at));
				store_shared(factor + at, exp2_exact(sub_(m, next)));
				store_shared(top + at, next);
				m = next;
			}
		}
		sync_warp(); // the maxima are there; and the words have been read, for the next chunk
		for (int k = 0; k < 2 * tiles; k++) {
			int n = tile(k / 2), j = lane + 32 * (k & 1);
			float *at = w + (n * lc_tile + j) * R;
			UNROLL for (int g = 0; g < Fours; g++) {
				float4 x = load_shared((const float4 *)at + g), m = load_shared((const float4 *)(top + n * R) + g);
				x = {exp2_exact(sub_(x.x, m.x)), exp2_exact(sub_(x.y, m.y)), exp2_exact(sub_(x.z, m.z)), exp2_exact(sub_(x.w, m.w))};
				if (!(full >> n & 1)) {
					const uint64_t *seen = words + n * R + 4 * g;
					x.x = load_shared(seen) >> j & 1 ? x.x : -0.0f;
					x.y = load_shared(seen + 1) >> j & 1 ? x.y : -0.0f;
					x.z = load_shared(seen + 2) >> j & 1 ? x.z : -0.0f;
					x.w = load_shared(seen + 3) >> j & 1 ? x.w : -0.0f;
				}
				store_shared((float4 *)at + g, x);
			}
		}
	}

	// State is what a lane has of the rows.
	struct State {
		float l[R];
		float4 o[R][Units];
	};

	// add adds the weighted values that came k-th.
	DEV_METHOD void add(State &s, int k) {
		int n = tile(k - tiles);
		UNROLL for (int r = 0; r < R; r++) {
			float f = load_shared(factor + n * R + r);
			s.l[r] = mul_(s.l[r], f);
			UNROLL for (int u = 0; u < Units; u++) s.o[r][u] = scaled(s.o[r][u], f);
		}
		self().add_tile(s, k, n, size(n));
	}

	DEV_METHOD void add_tile(State &s, int k, int n, int end) { add_plain(s, k, n, 0, end); }

	// add_plain adds keys from … to−1 of the tile.
	DEV_METHOD void add_plain(State &s, int k, int n, int from, int to) {
		switch (p.value.dtype) {
		case lc_f32:
			return add_of<lc_f32>(s, k, n, from, to);
		case lc_f16:
			return add_of<lc_f16>(s, k, n, from, to);
		case lc_bf16:
			return add_of<lc_bf16>(s, k, n, from, to);
		case lc_f8e4m3:
			return add_of<lc_f8e4m3>(s, k, n, from, to);
		}
		add_of<lc_f8e5m2>(s, k, n, from, to);
	}

	// whole says that all rows see the tile whole; rows that there are not may have
	// any state.
	DEV_METHOD bool whole(int n) const { return full >> n & 1; }

	template <int Type> DEV_METHOD void add_of(State &s, int k, int n, int from, int to) {
		if (whole(n))
			add_keys<Type, false>(s, k, n, from, to);
		else
			add_keys<Type, true>(s, k, n, from, to);
	}

	// Values are rows of one type in the ring, one after another.
	template <int Type> struct Values {
		enum { Bytes = Type == lc_f32 ? 4 : Type <= lc_bf16 ? 2 : 1 };
		const char *at; // the lane's first features
		int stride;
		float f;

		DEV_METHOD void next() { at += stride; }

		// four is the u-th four features; past the last, of no meaning.
		DEV_METHOD float4 four(int u) const {
			float4 v = value<Type>(at + 128 * Bytes * u);
			return Type >= lc_f8e4m3 ? scaled(v, f) : v;
		}
	};

	template <int Type, bool Hidden> DEV_METHOD void add_keys(State &s, int k, int n, int from, int to) {
		float f = Type >= lc_f8e4m3 && p.value_scale.data ? load_scalar(p.value_scale, load_const(&item->kv_head), 0) : 1.0f;
		Values<Type> v = {self().slot(k) + from * stride + 4 * lane * Values<Type>::Bytes, stride, f};
		add_rows<Hidden>(s, v, w + (n * lc_tile + from) * R, to - from);
	}

	// add_rows adds so many rows, whose weights begin at x.
	template <bool Hidden, class Rows> DEV_METHOD static void add_rows(State &s, Rows &row, const float *x, int count) {
		UNROLL_BY(4) for (int j = 0; j < count; j++, row.next(), x += R) {
			float y[R];
			UNROLL for (int g = 0; g < Fours; g++) {
				float4 z = load_shared((const float4 *)x + g);
				y[4 * g] = z.x, y[4 * g + 1] = z.y, y[4 * g + 2] = z.z, y[4 * g + 3] = z.w;
			}
			UNROLL for (int r = 0; r < R; r++) s.l[r] = add_(s.l[r], y[r]);
			UNROLL for (int u = 0; u < Units; u++) {
				float4 v = row.four(u);
				bool finite = !Hidden || finite4(v);
				UNROLL for (int r = 0; r < R; r++)
					if (finite || as_bits(y[r]) != 0x80000000u)
						s.o[r][u] = {fma_(v.x, y[r], s.o[r][u].x), fma_(v.y, y[r], s.o[r][u].y), fma_(v.z, y[r], s.o[r][u].z), fma_(v.w, y[r], s.o[r][u].w)};
			}
		}
	}

	template <int Type> DEV_METHOD static float4 value(const char *at) {
		if (Type == lc_f32)
			return load_shared((const float4 *)at);
		if (Type <= lc_bf16) {
			uint2 u = load_shared((const uint2 *)at);
			return widen4(Type, {u.x, u.y, 0, 0}, 0);
		}
		return widen4(Type, {load_shared((const uint32_t *)at), 0, 0, 0}, 0);
	}

	// chunk computes the state of chunk c and stores it as a part.
	DEV_METHOD void chunk(int c, float *part) {
		first = (int64_t)c * lc_chunk;
		int64_t left = load_const(&seq->keys) - first;
		keys = left < lc_chunk ? (int)left : (int)lc_chunk;
		self().look();
		self().fetch(0);
		for (int k = 0; k < tiles; k++) {
			fetch_next(k);
			scores(k);
		}
		weigh();
		State s;
		UNROLL for (int r = 0; r < R; r++) {
			s.l[r] = 0.0f;
			UNROLL for (int u = 0; u < Units; u++) s.o[r][u] = zeros();
		}
		for (int k = tiles; k < 2 * tiles; k++) {
			fetch_next(k);
			add(s, k);
		}
		copy_wait();
		float *m = part + p.part_rows * p.part_dim;
		UNROLL for (int r = 0; r < R; r++) {
			if (r >= rows)
				continue;
			UNROLL for (int u = 0; u < Units; u++)
				if (128 * u + 4 * lane < p.value_dim)
					store_global((float4 *)(part + r * p.part_dim + 128 * u) + lane, s.o[r][u]);
			if (lane == 0) // all lanes have the same; an index that is a lane's would keep it in memory
				store_global(m + p.part_rows + r, s.l[r]);
		}
		if (lane < rows)
			store_global(m + lane, tiles > 0 ? load_shared(top + tile(tiles - 1) * R + lane) : max_start());
	}

	// fetch_next waits for what comes k-th and asks for the next, which takes the
	// place of what came before.
	DEV_METHOD void fetch_next(int k) {
		copy_wait();
		sync_warp(); // all of it is there, and what came before is read
		self().fetch(k + 1);
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

template <int R, int Dim> struct PlainDecode : Decode<R, Dim, PlainDecode<R, Dim>> {
	using Decode<R, Dim, PlainDecode<R, Dim>>::Decode;
};

// decode runs the items of a kind of decoding.
template <class Kind> DEV void decode(const lc_attention_params &p) {
	Kind a(p);
	int items = load_const(&((const lc_counts *)p.counts)->items);
	for (int k = block_index(); k < items; k += grid_size())
		a.run((const lc_item *)p.items + k);
}
