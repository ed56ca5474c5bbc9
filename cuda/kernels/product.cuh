// Products of rows and keys that lie in shared memory, 64 features at a time.
#pragma once

#include "prims.cuh"

// slice features of a row lie side by side, slice_row floats from those of the next.
enum { product_threads = 128, slice = 64, slice_row = slice + 4 };

// add_products adds to s the dot products, over n features ascending, of the rows
// gr + 8a in x and the keys i + 16c in y: 16 loads of 16 bytes for 128 FMAs with 64
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
