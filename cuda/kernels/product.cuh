// Products of rows and keys that lie in shared memory, 64 features at a time.
#pragma once

#include "prims.cuh"

// slice features of a row lie side by side, slice_row floats from those of the next.
enum { product_threads = 128, slice = 64, slice_row = slice + 4 };

// add_products adds to s the dot products, over n features ascending, of the rows
// gr + 8a in x and the keys i + 16c in y: 12 loads of 16 bytes for 128 FMAs with 64
// rows, 5 for 16 with 8.
template <int Rows> DEV void add_products(float (&s)[Rows / 8][4], const float *x, const float *y, int gr, int i, int n) {
	int d = 0;
	UNROLL_BY(1) for (; d + 4 <= n; d += 4) {
		float4 key[4];
		UNROLL for (int c = 0; c < 4; c++) key[c] = load_shared((const float4 *)(y + (i + 16 * c) * slice_row + d));
		UNROLL for (int a = 0; a < Rows / 8; a++) {
			float4 e = load_shared((const float4 *)(x + (gr + 8 * a) * slice_row + d));
			UNROLL for (int c = 0; c < 4; c++) {
				float sum = s[a][c];
				sum = fma_(key[c].x, e.x, sum);
				sum = fma_(key[c].y, e.y, sum);
				sum = fma_(key[c].z, e.z, sum);
				s[a][c] = fma_(key[c].w, e.w, sum);
			}
		}
	}
	UNROLL_BY(1) for (; d < n; d++) // a product of zeros would make −0 +0
		UNROLL for (int a = 0; a < Rows / 8; a++) {
			float e = load_shared(x + (gr + 8 * a) * slice_row + d);
			UNROLL for (int c = 0; c < 4; c++) s[a][c] = fma_(load_shared(y + (i + 16 * c) * slice_row + d), e, s[a][c]);
		}
}

// What of the weights a sum takes: all, those but −0, or of row r those up to r.
enum Which { all_weights, seen_weights, earlier_weights };

template <Which W> DEV void accumulate(float4 v, float f, float4 &o, bool earlier) {
	if (W == all_weights || (W == seen_weights && as_bits(f) != 0x80000000u) || (W == earlier_weights && earlier))
		o = {fma_(v.x, f, o.x), fma_(v.y, f, o.y), fma_(v.z, f, o.z), fma_(v.w, f, o.w)};
}

DEV float element(float4 f, int k) { return k == 0 ? f.x : k == 1 ? f.y : k == 2 ? f.z : f.w; }

// add_weighted adds to o[k], of features 4i … 4i+3, the rows j < n of y ascending
// times the weights of row gr + 8k: 12 loads of 16 bytes for 128 FMAs.
template <Which W, int Rows> DEV void add_weighted(float4 (&o)[Rows], const float *weights, const float *y, int gr, int i, int n) {
	int j = 0;
	UNROLL_BY(1) for (; j + 4 <= n; j += 4) {
		float4 f[Rows];
		UNROLL for (int k = 0; k < Rows; k++) f[k] = load_shared((const float4 *)(weights + (gr + 8 * k) * slice_row + j));
		UNROLL for (int e = 0; e < 4; e++) {
			float4 v = load_shared((const float4 *)(y + (j + e) * slice_row + 4 * i));
			UNROLL for (int k = 0; k < Rows; k++) accumulate<W>(v, element(f[k], e), o[k], j + e <= gr + 8 * k);
		}
	}
	UNROLL_BY(1) for (; j < n; j++) {
		float4 v = load_shared((const float4 *)(y + j * slice_row + 4 * i));
		UNROLL for (int k = 0; k < Rows; k++) accumulate<W>(v, load_shared(weights + (gr + 8 * k) * slice_row + j), o[k], j <= gr + 8 * k);
	}
}

// add_columns adds to o[k] the rows r < n of x ascending times column 8·gr + k of the
// weights.
template <Which W> DEV void add_columns(float4 (&o)[8], const float *weights, const float *x, int gr, int i, int n) {
	UNROLL_BY(1) for (int r = 0; r < n; r++) {
		float4 v = load_shared((const float4 *)(x + r * slice_row + 4 * i));
		float4 a = load_shared((const float4 *)(weights + r * slice_row + 8 * gr)), b = load_shared((const float4 *)(weights + r * slice_row + 8 * gr + 4));
		UNROLL for (int k = 0; k < 8; k++) accumulate<W>(v, element(k < 4 ? a : b, k % 4), o[k], true);
	}
}
