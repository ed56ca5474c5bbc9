// Scores before softmax: of single keys over some of their features (rule 20 of
// package kernel), of codes (rule 21), and of whole sequences (rule 22).
//
// Rules 20 and 22 differ in where a key and its scores lie, and are one kernel. A
// block of 128 threads has 64 keys of a KV head, and Rows rows (query token and
// head of the group): 64 features at a time go through shared memory, then each
// thread has the products of Rows/8 rows and four keys in registers. With 8 rows,
// those of a token of a decode step, a key is read from memory once for all heads of
// its group: 4·64·dim bytes for 2·8·64·dim FLOPs, so memory is the limit. With 64
// rows it is the FMA units.
//
// Where slots lie side by side (SparQ's second copy of keys), neighbouring threads
// read neighbouring keys, and elsewhere neighbouring features, so that both are
// read in whole sectors.
//
// Ladder: not measured on a device yet.
#pragma once

#include "exact.cuh"
#include "product.cuh"
#include "tensor.cuh"

// KeyScores is a block at work on an item: 64 keys against rows of a KV head.
template <int Rows> struct KeyScores {
	const lc_key_scores_params &p;
	float *x, *y;        // [Rows][slice_row] features of rows, [64][slice_row] of keys
	int64_t *place;      // [64] the elements at which the keys begin
	int gr, i;           // row group, place in the group
	float s[Rows / 8][4]; // of rows gr + 8a and keys i + 16c

	int sequence, head, have; // KV head; keys that are there
	int64_t t0, j0;      // first query token of the sequence, first key
	int r0, rows;        // rows of the sequence: token·group + head of the group
	const int32_t *list; // channels of the token; null: all features

	DEV_METHOD KeyScores(const lc_key_scores_params &params) : p(params) {
		x = (float *)shared_memory();
		y = x + Rows * slice_row;
		place = (int64_t *)(y + lc_tile * slice_row);
		gr = thread_index() / 16, i = thread_index() % 16;
	}

	DEV_METHOD int64_t row_at(const lc_tensor &t, int r) const { return (t0 + r / p.group) * t.row + (head * p.group + r % p.group) * t.head; }

	// set_item finds the keys and rows of an item. It returns whether there are rows.
	DEV_METHOD bool set_item(int64_t item) {
		j0 = item % p.tiles * lc_tile;
		int64_t block = item / p.tiles % p.row_blocks;
		head = (int)(item / p.tiles / p.row_blocks % p.heads);
		sequence = (int)(item / p.tiles / p.row_blocks / p.heads);
		const int32_t *starts = (const int32_t *)p.query_start + sequence, *indptr = (const int32_t *)p.key_start + sequence;
		t0 = load_const(starts);
		int64_t first = load_const(indptr), all = (load_const(starts + 1) - t0) * p.group, end = all;
		int64_t keys = p.page_size > 0 ? load_const((const int32_t *)p.seq_lens + sequence) : load_const(indptr + 1) - first;
		list = nullptr;
		if (p.channels) { // rows of one token
			int each = (p.group + Rows - 1) / Rows;
			int64_t token = block / each;
			r0 = (int)(token * p.group + block % each * Rows);
			end = (token + 1) * p.group;
			end = end < all ? end : all;
			list = (const int32_t *)p.channels + ((t0 + token) * p.heads + head) * p.features;
		} else
			r0 = (int)(block * Rows);
		rows = end - r0 < Rows ? (int)(end - r0) : Rows;
		int64_t left = keys - j0;
		have = left < 0 ? 0 : left < lc_tile ? (int)left : (int)lc_tile;
		if (rows <= 0 || (p.page_size == 0 && have == 0))
			return false;
		if (thread_index() < have) { // the last places were read before the last products
			int64_t j = j0 + thread_index(), at = (first + j) * p.key.row;
			if (p.page_size > 0)
				at = load_const((const int32_t *)p.pages + first + j / p.page_size) * p.key.row + j % p.page_size * p.key.slot;
			store_shared(place + thread_index(), at + head * p.key.head);
		}
		return true;
	}

	DEV_METHOD int channel(int c) const { return list ? load_const(list + c) : c; }

	// load_rows fills x with n features from c0.
	DEV_METHOD void load_rows(int c0, int n) {
		if (!list)
			for (int k = thread_index(); k < Rows * (slice / 4); k += product_threads) {
				int r = k / (slice / 4), d = k % (slice / 4) * 4;
				store_shared((float4 *)(x + r * slice_row + d), r < rows ? load4(p.query, row_at(p.query, r0 + r), c0 + d, p.features) : zeros());
			}
		else
			for (int k = thread_index(); k < Rows * slice; k += product_threads) {
				int r = k / slice, c = k % slice;
				float f = r < rows && c < n ? load_element(p.query, row_at(p.query, r0 + r) + channel(c0 + c) * p.query.dim) : 0.0f;
				store_shared(x + r * slice_row + c, f);
			}
	}

	// load_keys fills y likewise.
	DEV_METHOD void load_keys(int c0, int n) {
		if (!list && p.key.dim == 1)
			UNROLL_BY(8) for (int k = thread_index(); k < lc_tile * (slice / 4); k += product_threads) {
				int j = k / (slice / 4), d = k % (slice / 4) * 4;
				store_shared((float4 *)(y + j * slice_row + d), j < have ? load4(p.key, load_shared(place + j), c0 + d, p.features) : zeros());
			}
		else if (p.key.slot == 1)
			UNROLL_BY(8) for (int k = thread_index(); k < lc_tile * n; k += product_threads) {
				int j = k % lc_tile, c = k / lc_tile;
				store_shared(y + j * slice_row + c, j < have ? load_element(p.key, load_shared(place + j) + channel(c0 + c) * p.key.dim) : 0.0f);
			}
		else
			UNROLL_BY(8) for (int k = thread_index(); k < lc_tile * slice; k += product_threads) {
				int j = k / slice, c = k % slice;
				store_shared(y + j * slice_row + c, j < have && c < n ? load_element(p.key, load_shared(place + j) + channel(c0 + c) * p.key.dim) : 0.0f);
			}
	}

	// store writes a score; of keys that are not there −Inf.
	DEV_METHOD void store() {
		UNROLL for (int a = 0; a < Rows / 8; a++) {
			int r = r0 + gr + 8 * a;
			UNROLL for (int c = 0; c < 4; c++) {
				int j = i + 16 * c;
				if (r >= r0 + rows || j0 + j >= p.columns || (p.page_size == 0 && j >= have))
					continue;
				float f = j < have ? mul_(s[a][c], p.scale) : minus_infinity();
				store_element(p.out, out_at(r) + (j0 + j) * p.out.dim, f);
			}
		}
	}

	// out_at is where the scores of a row begin: rule 22 has those of a sequence
	// one row after the other.
	DEV_METHOD int64_t out_at(int r) const {
		if (p.page_size > 0)
			return row_at(p.out, r);
		int64_t keys = load_const((const int32_t *)p.key_start + sequence + 1) - load_const((const int32_t *)p.key_start + sequence);
		return (head * p.group + r % p.group) * p.out.row + (load_const((const int64_t *)p.pairs + sequence) + r / p.group * keys) * p.out.dim;
	}

	DEV_METHOD void run(int64_t item) {
		if (!set_item(item))
			return;
		UNROLL for (int a = 0; a < Rows / 8; a++)
			UNROLL for (int c = 0; c < 4; c++) s[a][c] = 0.0f;
		UNROLL_BY(1) for (int c0 = 0; c0 < p.features && have > 0; c0 += slice) {
			int n = p.features - c0 < slice ? p.features - c0 : (int)slice;
			sync(); // the last slice is read, the places are there
			load_rows(c0, n);
			load_keys(c0, n);
			sync();
			add_products<Rows>(s, x, y, gr, i, n);
		}
		store();
	}
};

template <int Rows> DEV void key_scores(const lc_key_scores_params &p) {
	KeyScores<Rows> a(p);
	for (int64_t k = block_index(); k < p.items; k += grid_size()) a.run(k);
}

// code_scores is rule 21: a key a thread, and the scores of the codes of some
// parts for four rows in shared memory (lc_code_scores_shared bytes). Codes are
// read once for four rows.
enum { code_threads = 256, code_rows = 4 };

DEV void code_scores(const lc_code_scores_params &p) {
	float *table = (float *)shared_memory(); // [code_rows][parts at once · codes]
	const int at_once = lc_code_floats / code_rows / p.codes_of_part, width = at_once * p.codes_of_part;
	for (int64_t item = block_index(); item < p.items; item += grid_size()) {
		int head = (int)(item / p.tiles % p.heads), s = (int)(item / p.tiles / p.heads);
		const int32_t *starts = (const int32_t *)p.query_start + s;
		int64_t t0 = load_const(starts), j = item % p.tiles * code_threads + thread_index();
		int rows = (int)(load_const(starts + 1) - t0) * p.group;
		bool here = j < load_const((const int32_t *)p.seq_lens + s);
		int64_t at = head * p.codes.head;
		if (here)
			at += load_const((const int32_t *)p.pages + load_const((const int32_t *)p.key_start + s) + j / p.page_size) * p.codes.row + j % p.page_size * p.codes.slot;
		for (int r0 = 0; r0 < rows; r0 += code_rows) {
			auto row_at = [&](const lc_tensor &t, int r) { return (t0 + r / p.group) * t.row + (head * p.group + r % p.group) * t.head; };
			float sum[code_rows];
			UNROLL for (int k = 0; k < code_rows; k++) sum[k] = 0.0f;
			for (int p0 = 0; p0 < p.parts; p0 += at_once) {
				int n = (p.parts - p0 < at_once ? p.parts - p0 : at_once) * p.codes_of_part;
				sync(); // the last scores are read
				for (int k = thread_index(); k < code_rows * width; k += code_threads) {
					int r = r0 + k / width, c = k % width;
					if (r < rows && c < n)
						store_shared(table + k, load_element(p.table, row_at(p.table, r) + ((int64_t)p0 * p.codes_of_part + c) * p.table.dim));
				}
				sync();
				if (here)
					UNROLL_BY(4) for (int c = 0; c < n; c += p.codes_of_part) {
						int64_t part = p0 + c / p.codes_of_part;
						int code = load_const((const uint8_t *)p.codes.data + at + part * p.codes.dim) & (p.codes_of_part - 1);
						UNROLL for (int k = 0; k < code_rows; k++) sum[k] = add_(sum[k], load_shared(table + k * width + c + code));
					}
			}
			UNROLL for (int k = 0; k < code_rows; k++)
				if (r0 + k < rows && j < p.columns)
					store_element(p.out, row_at(p.out, r0 + k) + j * p.out.dim, here ? sum[k] : minus_infinity());
		}
	}
}
