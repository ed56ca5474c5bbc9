// The recurrences of linear attention: rule 24 of package kernel.
//
// A block of 128 threads has 64 features of the values of a head of a sequence,
// whose columns of the state no other block needs, and goes through the chunks of
// 64 tokens. Of each chunk it
//
//	reads   the state, with queries and, by the delta rule, with keys;
//	weighs  the pairs of tokens, by products of queries and keys;
//	solves  what the delta rule stores, eight tokens at a time;
//	adds    weights times what was stored to the outputs;
//	stores  the chunk in the state.
//
// Channels of keys go through shared memory 64 at a time; the state lies where it
// is kept, and is read twice and written once for a chunk: 192·KeyDim·4 bytes for
// 2·64·(128·KeyDim + 64·KeyDim + 64·64) FLOPs and more, so with many tokens the
// FMA units are the limit. A token alone costs the state alone: 2·64·KeyDim·4
// bytes read, half of them again, from the second-level cache.
//
// Gates are summed in binary64. With a gate for each channel a pair of tokens
// takes its factors by way of the boundary between them (rule 24), so weights are
// made level by level, with queries and keys decayed anew for each: six levels of
// 64 exponentials a thread for 40 products where others have 32.
//
// Ladder: not measured on a device yet. The weights of a chunk do not depend on the
// state; a pass of their own, over all chunks at once, would shorten what has to
// wait for the chunk before, for 64·4 bytes of memory a token and head.
#pragma once

#include "exact.cuh"
#include "product.cuh"
#include "tensor.cuh"

// Scan is a block at work. Channels: each channel of a key has a gate.
template <bool Channels> struct Scan {
	const lc_scan_params &p;
	float *a, *b;          // [64][slice_row] queries and keys, then weights of outputs and of the delta rule
	float *z, *u;          // [64][slice_row] the state, and what is stored
	float *ask, *own, *rest; // [64] D(0, r+1−z), D(0, r+1), D(r+1, n) of the head's gate
	float *self, *beta;    // [64] weights of tokens for themselves
	double *g;             // [65] sums of gates, or [65][64]
	int tid, gr, i;        // thread, row group, place in the group

	int sequence, head, key_head, e0; // the first feature of values
	int from, to, shift;   // slots; z of rule 24
	int64_t t0, item;      // first token of the chunk
	int n;                 // tokens of it
	bool first, gated, delta;

	DEV_METHOD Scan(const lc_scan_params &params) : p(params) {
		a = (float *)shared_memory();
		b = a + 64 * slice_row;
		z = b + 64 * slice_row;
		u = z + 64 * slice_row;
		ask = u + 64 * slice_row;
		own = ask + 64;
		rest = own + 64;
		self = rest + 64;
		beta = self + 64;
		g = (double *)(beta + 64);
		tid = thread_index(), gr = tid / 16, i = tid % 16;
		gated = Channels || p.gates.data != 0, delta = p.beta.data != 0, shift = p.bonus.data != 0;
	}

	// power is the gate x as rule 24 takes it.
	DEV_METHOD static float power(float x) {
		float f = mul_(x, log2_e());
		f = f < -128.0f ? -128.0f : f;
		return f > 0.0f ? 0.0f : f;
	}
	DEV_METHOD static float decayed(double from, double to) { return exp2_exact(to_float(to - from)); }

	// set_gates sums the gates of a head, and has the factors of tokens.
	DEV_METHOD void set_gates() {
		sync(); // the last ones are read
		if (tid < n)
			store_shared(ask + tid, power(load_scalar(p.gates, t0 + tid, head)));
		sync();
		if (tid == 0) {
			double sum = 0;
			store_shared(g, sum);
			for (int r = 0; r < n; r++) {
				sum += load_shared(ask + r);
				store_shared(g + r + 1, sum);
			}
		}
		sync();
		if (tid < n) {
			double at = load_shared(g + tid + 1);
			store_shared(own + tid, decayed(0, at));
			store_shared(rest + tid, decayed(at, load_shared(g + n)));
			store_shared(ask + tid, decayed(0, load_shared(g + tid + 1 - shift)));
		}
	}

	// set_channels sums those of channels from d0 on.
	DEV_METHOD void set_channels(int d0) {
		sync();
		if (tid >= 64 || d0 + tid >= p.key_dim)
			return;
		double sum = 0;
		store_shared(g + tid, sum);
		UNROLL_BY(8) for (int r = 0; r < n; r++) {
			sum += power(load_element(p.gate, (t0 + r) * p.gate.row + head * p.gate.head + (d0 + tid) * p.gate.dim));
			store_shared(g + (r + 1) * 64 + tid, sum);
		}
	}
	DEV_METHOD double sum(int r, int d) const { return load_shared(g + (Channels ? r * 64 + d : r)); }

	DEV_METHOD int have(int d0) const { return p.key_dim - d0 < slice ? p.key_dim - d0 : (int)slice; }

	// fill loads channels from d0 of the chunk's tokens, as change makes them of
	// token and channel; zeros of tokens that are not there.
	template <class Change> DEV_METHOD void fill(float *dst, const lc_tensor &t, int d0, Change change) {
		UNROLL_BY(2) for (int k = tid; k < 64 * (slice / 4); k += product_threads) {
			int r = k / (slice / 4), d = k % (slice / 4) * 4;
			float4 f = zeros();
			if (r < n && d0 + d < p.key_dim) {
				f = load4(t, (t0 + r) * t.row + key_head * t.head, d0 + d, p.key_dim);
				f = {change(f.x, r, d), change(f.y, r, d + 1), change(f.z, r, d + 2), change(f.w, r, d + 3)};
			}
			store_shared((float4 *)(dst + r * slice_row + d), f);
		}
	}
	DEV_METHOD void fill_queries(int d0) {
		fill(a, p.query, d0, [&](float x, int, int) { return mul_(x, p.scale); });
	}
	DEV_METHOD void fill_keys(int d0) {
		fill(b, p.key, d0, [&](float x, int, int) { return x; });
	}

	// The state: where it was before the first chunk, and where it is kept. In the
	// workspace its rows have 64 floats.
	DEV_METHOD float4 state(int d) const {
		if (first && from < 0)
			return zeros();
		if (first || to >= 0)
			return load4<false>(p.state, (int64_t)(first ? from : to) * p.state.row + head * p.state.slot + d * p.state.head, e0 + 4 * i, p.value_dim);
		return load_global((const float4 *)p.space + (item * p.key_dim + d) * 16 + i);
	}
	DEV_METHOD void keep(int d, float4 f) const {
		if (to >= 0)
			store4(p.state, (int64_t)to * p.state.row + head * p.state.slot + d * p.state.head, e0 + 4 * i, p.value_dim, f);
		else
			store_global((float4 *)p.space + (item * p.key_dim + d) * 16 + i, f);
	}

	// read sets o to what queries read of the state, and u to the values less, by the
	// delta rule, what keys read of it.
	template <int Rows> DEV_METHOD void read(float4 (&o)[Rows]) {
		float4 y[Rows];
		UNROLL for (int k = 0; k < Rows; k++) o[k] = y[k] = zeros();
		UNROLL_BY(1) for (int d0 = 0; d0 < p.key_dim; d0 += slice) {
			if (Channels)
				set_channels(d0);
			sync(); // the gates are there, what was before is read
			fill(a, p.query, d0, [&](float x, int r, int d) {
				x = mul_(x, p.scale);
				return !gated ? x : mul_(x, Channels ? decayed(0, sum(r + 1 - shift, d)) : load_shared(ask + r));
			});
			if (delta)
				fill(b, p.key, d0, [&](float x, int r, int d) { return !gated ? x : mul_(x, Channels ? decayed(0, sum(r + 1, d)) : load_shared(own + r)); });
			UNROLL for (int k = 0; k < 8; k++) {
				int d = gr + 8 * k;
				store_shared((float4 *)(z + d * slice_row + 4 * i), d < have(d0) ? state(d0 + d) : zeros());
			}
			sync();
			add_weighted<all_weights>(o, a, z, gr, i, have(d0));
			if (delta)
				add_weighted<all_weights>(y, b, z, gr, i, have(d0));
		}
		UNROLL for (int k = 0; k < 8; k++) {
			int r = gr + 8 * k;
			float4 v = r < n ? load4(p.value, (t0 + r) * p.value.row + head * p.value.head, e0 + 4 * i, p.value_dim) : zeros();
			if (delta && k < Rows) {
				float4 f = y[k < Rows ? k : 0];
				v = {sub_(v.x, f.x), sub_(v.y, f.y), sub_(v.z, f.z), sub_(v.w, f.w)};
			}
			store_shared((float4 *)(u + r * slice_row + 4 * i), v);
		}
	}

	// level adds to s and t the products of the second halves of blocks of 2·H tokens
	// with the first ones.
	template <int H, int Rows> DEV_METHOD void level(float (&s)[Rows][4], float (&t)[Rows][4], int d0) {
		if (H >= n)
			return;
		sync(); // the last level is read
		UNROLL_BY(1) for (int k = tid; k < 64 * (slice / 4); k += product_threads) {
			int r = k / (slice / 4), d = k % (slice / 4) * 4, m = (r & ~(2 * H - 1)) + H;
			bool second = (r & H) != 0;
			float4 x = zeros(), y = zeros();
			if (r < n && m < n && d0 + d < p.key_dim) {
				y = load4(p.key, (t0 + r) * p.key.row + key_head * p.key.head, d0 + d, p.key_dim);
				if (second)
					x = scaled(load4(p.query, (t0 + r) * p.query.row + key_head * p.query.head, d0 + d, p.key_dim), p.scale);
				float *xs = &x.x, *ys = &y.x;
				UNROLL for (int e = 0; e < 4; e++) {
					double mid = sum(m, d + e), at = sum(r + 1 - (second ? shift : 0), d + e);
					float f = second ? decayed(mid, at) : decayed(at, mid);
					xs[e] = mul_(xs[e], f), ys[e] = mul_(ys[e], f);
				}
			}
			store_shared((float4 *)(a + r * slice_row + d), x);
			store_shared((float4 *)(b + r * slice_row + d), y);
		}
		sync();
		add_level<H>(s, a, have(d0));
		if (delta)
			add_level<H>(t, b, have(d0));
	}

	template <int H, int Rows> DEV_METHOD void add_level(float (&s)[Rows][4], const float *x, int count) {
		UNROLL_BY(1) for (int d = 0; d < count; d += 4) {
			float4 key[4];
			UNROLL for (int c = 0; c < 4; c++) key[c] = load_shared((const float4 *)(b + (i + 16 * c) * slice_row + d));
			UNROLL for (int k = 0; k < Rows; k++) {
				float4 e = load_shared((const float4 *)(x + (gr + 8 * k) * slice_row + d));
				UNROLL for (int c = 0; c < 4; c++) {
					if ((H >= 16 ? (16 * c ^ 8 * k) & ~(2 * H - 1) & 48 : c != k / 2) || (H >= 8 && !(8 * k & H)) || (H >= 16 && (16 * c & H)))
						continue; // no pair of the level
					int r = gr + 8 * k, j = i + 16 * c;
					if (((r ^ j) & ~(2 * H - 1)) || !(r & H) || (j & H))
						continue;
					float sum = fma_(key[c].x, e.x, s[k][c]);
					sum = d + 1 < count ? fma_(key[c].y, e.y, sum) : sum;
					sum = d + 2 < count ? fma_(key[c].z, e.z, sum) : sum;
					s[k][c] = d + 3 < count ? fma_(key[c].w, e.w, sum) : sum;
				}
			}
		}
	}

	// weigh leaves in a the weights of tokens for outputs, and in b those of the delta
	// rule, negated.
	template <int Rows> DEV_METHOD void weigh() {
		float s[Rows][4], t[Rows][4], mine = 0.0f;
		UNROLL for (int k = 0; k < Rows; k++)
			UNROLL for (int c = 0; c < 4; c++) s[k][c] = t[k][c] = 0.0f;
		UNROLL_BY(1) for (int d0 = 0; d0 < p.key_dim; d0 += slice) {
			if (Channels && n > 1)
				set_channels(d0);
			sync(); // what was before is read
			fill_queries(d0);
			fill_keys(d0);
			sync();
			if (tid < n)
				UNROLL_BY(4) for (int d = 0; d < have(d0); d++) {
					float q = load_shared(a + tid * slice_row + d);
					if (shift)
						q = mul_(q, load_scalar(p.bonus, head, d0 + d));
					mine = fma_(q, load_shared(b + tid * slice_row + d), mine);
				}
			if (n == 1)
				continue;
			if (!Channels) {
				add_products<8 * Rows>(s, a, b, gr, i, have(d0));
				if (delta)
					add_products<8 * Rows>(t, b, b, gr, i, have(d0));
				continue;
			}
			level<32>(s, t, d0);
			level<16>(s, t, d0);
			level<8>(s, t, d0);
			level<4>(s, t, d0);
			level<2>(s, t, d0);
			level<1>(s, t, d0);
		}
		sync(); // queries and keys are read
		UNROLL for (int k = 0; k < Rows; k++)
			UNROLL for (int c = 0; c < 4; c++) {
				int r = gr + 8 * k, j = i + 16 * c;
				if (r <= j || r >= n)
					continue;
				float f = 1.0f;
				if (!Channels && gated)
					f = decayed(sum(j + 1, 0), sum(r + 1 - shift, 0));
				store_shared(a + r * slice_row + j, mul_(s[k][c], f));
				store_shared(b + r * slice_row + j, -mul_(t[k][c], f));
			}
		if (tid < n) {
			store_shared(a + tid * slice_row + tid, mine);
			if (delta)
				store_shared(beta + tid, load_scalar(p.beta, t0 + tid, head));
		}
		sync();
	}

	// solve makes of u what the delta rule stores.
	DEV_METHOD void solve() {
		UNROLL_BY(1) for (int r0 = 0; r0 < n; r0 += 8) {
			int r = r0 + gr;
			if (r0 > 0 && r < n) {
				float4 o = load_shared((const float4 *)(u + r * slice_row + 4 * i));
				UNROLL_BY(4) for (int j = 0; j < r0; j++)
					accumulate<all_weights>(load_shared((const float4 *)(u + j * slice_row + 4 * i)), load_shared(b + r * slice_row + j), o, true);
				store_shared((float4 *)(u + r * slice_row + 4 * i), o);
			}
			sync();
			if (tid < 64) { // a feature a thread
				float y[8];
				UNROLL for (int k = 0; k < 8; k++) y[k] = load_shared(u + (r0 + k) * slice_row + tid);
				UNROLL for (int k = 0; k < 8; k++) {
					if (r0 + k >= n)
						break;
					UNROLL for (int j = 0; j < k; j++) y[k] = fma_(load_shared(b + (r0 + k) * slice_row + r0 + j), y[j], y[k]);
					y[k] = mul_(y[k], load_shared(beta + r0 + k));
					store_shared(u + (r0 + k) * slice_row + tid, y[k]);
				}
			}
			sync();
		}
	}

	// store takes the chunk into the state.
	DEV_METHOD void store() {
		UNROLL_BY(1) for (int d0 = 0; d0 < p.key_dim; d0 += slice) {
			if (Channels)
				set_channels(d0);
			sync(); // the gates are there, what was before is read
			fill(b, p.key, d0, [&](float x, int r, int d) { return !gated ? x : mul_(x, Channels ? decayed(sum(r + 1, d), sum(n, d)) : load_shared(rest + r)); });
			sync();
			float4 o[8];
			UNROLL for (int k = 0; k < 8; k++) {
				int d = 8 * gr + k;
				o[k] = d < have(d0) ? state(d0 + d) : zeros();
				if (gated && d < have(d0))
					o[k] = scaled(o[k], decayed(0, sum(n, d)));
			}
			add_columns<all_weights>(o, b, u, gr, i, n);
			UNROLL for (int k = 0; k < 8; k++)
				if (8 * gr + k < have(d0))
					keep(d0 + 8 * gr + k, o[k]);
		}
	}

	template <int Rows> DEV_METHOD void chunk(bool kept) {
		float4 o[Rows];
		if (!Channels && gated)
			set_gates();
		read(o);
		weigh<Rows>();
		if (delta)
			solve();
		add_weighted<earlier_weights>(o, a, u, gr, i, n);
		UNROLL for (int k = 0; k < Rows; k++) {
			int r = gr + 8 * k;
			float4 f = {add_(o[k].x, 0.0f), add_(o[k].y, 0.0f), add_(o[k].z, 0.0f), add_(o[k].w, 0.0f)};
			if (r < n)
				store4(p.out, (t0 + r) * p.out.row + head * p.out.head, e0 + 4 * i, p.value_dim, f);
		}
		if (kept)
			store();
	}

	DEV_METHOD void run(int64_t k) {
		item = k;
		e0 = (int)(k % p.slices) * slice;
		head = (int)(k / p.slices % p.heads);
		sequence = (int)(k / p.slices / p.heads);
		key_head = head / p.group;
		from = p.from ? load_const((const int32_t *)p.from + sequence) : -1;
		to = p.to ? load_const((const int32_t *)p.to + sequence) : -1;
		const int32_t *starts = (const int32_t *)p.query_start + sequence;
		int64_t end = load_const(starts + 1);
		t0 = load_const(starts);
		first = true;
		if (t0 == end && to >= 0 && to != from)
			for (int d = gr; d < p.key_dim; d += 8) keep(d, state(d));
		for (; t0 < end; t0 += lc_tile) {
			n = end - t0 < lc_tile ? (int)(end - t0) : (int)lc_tile;
			bool kept = to >= 0 || t0 + n < end;
			if (n <= 8)
				chunk<1>(kept);
			else
				chunk<8>(kept);
			first = false;
		}
	}
};

template <bool Channels> DEV void scan(const lc_scan_params &p) {
	Scan<Channels> a(p);
	for (int64_t k = block_index(); k < p.items; k += grid_size()) a.run(k);
}
