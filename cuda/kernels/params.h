// The parameters of the kernels: one struct each, passed by value. Plain C, as
// the kernels, the simulator and cgo read it. Fields are of fixed width, those
// of 8 bytes first; addresses are those of the device, as integers; offsets and
// strides count elements. Names are those of package kernel.
#ifndef LONGCTX_PARAMS_H
#define LONGCTX_PARAMS_H

#include <stdint.h>

#ifdef __CUDACC__
#define LC_ANYWHERE __host__ __device__
#else
#define LC_ANYWHERE
#endif

enum { lc_tile = 64, lc_chunk = 512, lc_max_terms = 8, lc_max_dim = 576 };

// Element types: the values of tensor.DType.
enum { lc_f32 = 1, lc_f16, lc_bf16, lc_f8e4m3, lc_f8e5m2, lc_u8 };

// Codecs, masks and scores: the values of package kernel.
enum { lc_no_codec, lc_int8, lc_int4 };
enum { lc_mask_prefix = 1, lc_mask_document = 2, lc_mask_tree = 4, lc_mask_blocks = 8 };
enum { lc_soft_cap = 1, lc_slopes = 2, lc_rel_bias = 4, lc_prefix_bias = 8, lc_sink_logit = 16 };

// lc_tensor is [rows, heads, features], or paged [pages, slots, heads, features].
typedef struct {
	uint64_t data;                // of element 0, the view's offset included; 0: no tensor
	int64_t row, slot, head, dim; // strides
	int32_t dtype;
	int32_t vector; // 16: rows are whole units of 16 bytes, aligned; 4: of four features; 1: neither
} lc_tensor;

// lc_scalars is a rank-1 or rank-2 F32 tensor; data 0: no tensor.
typedef struct {
	uint64_t data;
	int64_t row, col;
	int64_t cols;
} lc_scalars;

// lc_coded is kernel.CodedPages.
typedef struct {
	lc_tensor codes, scale, zero;
	int32_t group; // of values: features that share a scale; of keys 0
	int32_t codec;
} lc_coded;

// lc_row_map is kernel.RowMap.
typedef struct {
	int32_t mod, div, first, base, count;
} lc_row_map;

// lc_sequence is what a block of rows needs to know of its sequence.
typedef struct {
	int64_t i0;        // index of its first query token
	int64_t keys;      // SeqLens
	int64_t key_start; // contiguous: row of its first key; paged: its first entry of the block table
	int64_t key_offset; // keys of the sequences before it: its place in tables of keys
	int64_t tree_start; // its first word of the tree mask
	int64_t block_row;  // row of the block mask of query block 0 and KV head 0
	int64_t block_first; // its first query block
	int64_t query_blocks;
	int32_t query_start, queries; // its query tokens
} lc_sequence;

// lc_item is the work of one thread block: tokens t0 … t0+tokens−1 of a sequence
// with query heads head … head+heads−1 of a KV head, against chunks
// chunk0 … chunk1−1. Its rows are tokens·heads, heads side by side.
typedef struct {
	int32_t sequence, kv_head;
	int32_t head, heads;
	int32_t t0, tokens;
	int32_t chunk0, chunk1;
	int32_t bounds; // its first entry of bounds, one for each Term
	int32_t part;   // −1: all chunks, to be finished; else the part that takes the state of chunk0, the others following
} lc_item;

// lc_range is the keys lo <= j < hi that a token sees in a Term; lc_bounds are
// the extremes of the ranges of an item's tokens.
typedef struct {
	int32_t lo, hi;
} lc_range;

typedef struct {
	int32_t min_lo, max_lo, min_hi, max_hi;
} lc_bounds;

// lc_counts are the numbers of items of a plan. They are a table, and not
// parameters, as is all that a Plan may change of a graph that was captured.
typedef struct {
	int32_t items, merges, blocks, spans;
} lc_counts;

// lc_attention_params serves the attention kernels and the merge of their parts.
typedef struct {
	lc_tensor query, key, value, out;
	lc_coded coded_key, coded_value;
	lc_scalars lse, key_scale, value_scale;
	lc_scalars slopes, rel_bias, prefix_bias, sink_logit;

	// Tables of the plan.
	uint64_t sequences;  // lc_sequence [n]
	uint64_t items;      // lc_item [counts.items], the most costly first
	uint64_t merges;     // lc_item [counts.merges]: chunk1 − chunk0 parts from part
	uint64_t bounds;     // lc_bounds
	uint64_t ranges;     // lc_range [terms][tokens]
	uint64_t scales;     // float [terms][tokens]
	uint64_t pages;      // int32 pages of all sequences; of a coded page −1 − page
	uint64_t cos, sin;   // float
	uint64_t query_positions, key_positions; // int32 [tokens], [Σ keys]; 0: the index
	uint64_t tree;       // uint64 words
	uint64_t block_indptr, block_indices;    // int32
	uint64_t counts;                         // lc_counts
	uint64_t row_q, row_k;                   // lc_row_map [terms]

	// Workspace.
	uint64_t totals; // a state for each thread block of the grid
	uint64_t parts;  // states of chunks: see attention.cuh

	float inv_cap, cap; // 1/(SoftCap·log₂e), SoftCap·log₂e
	int64_t rel_bias_start;
	int32_t raw_bytes; // of shared memory, for rows of 16 or 8 bits as they come; 0: none
	int32_t part_rows, part_dim; // of a part: o [rows][dim], m [rows], l [rows]
	int32_t tokens;
	int32_t heads, kv_heads, group;
	int32_t head_dim, value_dim;
	int32_t page_size;
	int32_t terms;
	int32_t rotary_dim, interleaved; // rotary_dim 0: none
	int32_t turns_keys;              // PreRoPE
	int32_t masks, scores;
	int32_t query_block, key_block, blocks_per_head;
	int32_t variant[lc_max_terms]; // the first Term that rotates both sides alike
	int32_t unused;
} lc_attention_params;

// lc_span is a tile of keys from j0 of a sequence, of one KV head, and the blocks
// of rows that it is met with: those of a query head together, tokens ascending.
typedef struct {
	int32_t sequence, kv_head, j0;
	int32_t first, blocks;
	int32_t unused;
} lc_span;

// lc_gradient_params serves Backward and ColumnStats.
typedef struct {
	lc_attention_params a; // its out and lse are those that Run left
	lc_tensor dout, dquery, dkey, dvalue;
	lc_scalars dlse;
	lc_scalars out;         // of column_stats
	uint64_t blocks, spans; // lc_item [counts.blocks] of one head, up to 64 tokens; lc_span [counts.spans]
	uint64_t delta;         // float [tokens][heads], of backward
	uint64_t sums, turned;  // of each thread block: see gradient.cuh
	int32_t slices; // of 64 features that a block has sums of
	int32_t stats, power, window, maximum, unused;
} lc_gradient_params;

// lc_merge_params joins states: kernel.MergeArgs.
typedef struct {
	lc_tensor out_a, out_b, out;
	lc_scalars lse_a, lse_b, lse;
	int32_t tokens, heads, features, unused;
} lc_merge_params;

// lc_rotate_params turns rows in place: kernel.RotateArgs. The rows of the table
// are gathered, one for each token.
typedef struct {
	lc_tensor x;
	uint64_t rows;     // int32 [tokens]; −1 leaves the token alone
	uint64_t cos, sin; // float [tokens][dim/2]
	int32_t tokens, heads, dim, interleaved, inverse, unused;
} lc_rotate_params;

// lc_append_params stores rows in slots of a paged cache: kernel.AppendArgs, for
// keys or for values.
typedef struct {
	lc_tensor rows, cache;
	lc_scalars scale; // of FP8
	uint64_t slots;   // int32 [tokens]; −1 drops the row
	int32_t tokens, heads, features, page_size;
} lc_append_params;

// lc_copy_params copies pages: kernel.CopyArgs.
typedef struct {
	lc_tensor cache;
	uint64_t src, dst; // int32 [pages]
	int32_t pages, slots, heads, features;
} lc_copy_params;

// lc_gather_params makes rows of a cache of others: kernel.GatherArgs.
typedef struct {
	lc_tensor cache;
	uint64_t dst, start, src; // int32 slots [rows], [rows+1], slots
	uint64_t weights;         // float; 0: all are 1
	int32_t rows, heads, features, page_size;
	int32_t copies; // each row is one other, of weight 1
	int32_t unused;
} lc_gather_params;

// lc_bounds_params finds the bounds of pages: kernel.PageBoundsArgs.
typedef struct {
	lc_tensor key, least, most;
	lc_scalars scale;    // of FP8
	uint64_t list, rows; // int32 [pages]
	int32_t pages, heads, features, unused;
} lc_bounds_params;

// lc_scores_params bounds the scores of pages: kernel.PageScoresArgs. An item is
// 64 pages of a sequence and KV head.
typedef struct {
	lc_tensor query, least, most, out;
	uint64_t query_start, indptr, indices; // int32
	int64_t items, tiles;                  // tiles of pages for each sequence and head
	int64_t columns;                       // of out
	int32_t heads, group, features;
	float scale;
} lc_scores_params;

// lc_key_scores_params asks for the scores of keys: kernel.RowScoresArgs, and with
// page_size 0 kernel.ScoresArgs. An item is 64 keys and some rows of a sequence and
// KV head.
typedef struct {
	lc_tensor query, key;
	lc_tensor out;         // without pages [heads, 1, Σ Q·K]
	uint64_t query_start;  // int32 [n+1]
	uint64_t key_start;    // int32 [n+1]; with pages of the block table
	uint64_t seq_lens;     // int32 [n], with pages
	uint64_t pages;        // int32
	uint64_t channels;     // int32 [tokens][heads][features]; 0: all, ascending
	uint64_t pairs;        // int64 [n] Q·K of the sequences before, without pages
	int64_t items, row_blocks, tiles; // blocks of rows, and tiles of keys, of the longest sequence
	int64_t columns;       // of out
	int32_t heads, group, features, page_size;
	float scale;
	int32_t unused;
} lc_key_scores_params;

// lc_code_scores_params asks for the scores of keys that are codes:
// kernel.CodeScoresArgs. An item is 256 keys of a sequence and KV head.
typedef struct {
	lc_tensor table, codes, out;
	uint64_t query_start, key_start, seq_lens, pages; // int32
	int64_t items, tiles, columns;
	int32_t heads, group, parts, codes_of_part, page_size, unused;
} lc_code_scores_params;

// lc_loss_params compares the scores of two models: kernel.ScoreLossArgs. An item
// is 64 queries of a head of a sequence, or 64 keys of a KV head of Student.
typedef struct {
	lc_tensor query, key;
	float scale;
	int32_t group, features, unused;
} lc_score_side;

typedef struct {
	lc_score_side student, teacher;
	lc_tensor dquery, dkey;          // data 0: no gradient
	lc_scalars out;
	uint64_t query_start, key_start; // int32 [n+1]
	int64_t items, tiles;            // tiles of the longest sequence
	int32_t heads, unused;
	float zero_below, gradient;
} lc_loss_params;

// lc_scan_params runs tokens through states: kernel.ScanArgs. An item is 64 features
// of the values of a head of a sequence. The strides of a state [slots, heads,
// channels, features] are row, slot, head and dim.
typedef struct {
	lc_tensor query, key, value, out;
	lc_tensor state;
	lc_tensor gate;              // of channels
	lc_scalars gates, beta;      // of heads
	lc_scalars bonus;
	uint64_t query_start;        // int32 [n+1]
	uint64_t from, to;           // int32 slots [n]; 0: none
	uint64_t space;              // float [items][key_dim][64]: states of sequences whose last is not kept
	int64_t items;
	int32_t heads, group;        // heads of a key head
	int32_t key_dim, value_dim, slices; // of 64 features of values
	float scale;
} lc_scan_params;

// lc_topk_params finds the largest scores of rows: kernel.TopKArgs.
typedef struct {
	lc_tensor scores;
	uint64_t counts; // int32 [tokens]; 0: n
	uint64_t out;    // int32 [rows][k]
	int64_t rows;
	int32_t heads, n, k, unused;
} lc_topk_params;

// lc_encode_params codes pages, of keys or of values: kernel.EncodeArgs.
typedef struct {
	lc_tensor rows;
	lc_coded coded;
	lc_scalars scale;  // of FP8
	uint64_t src, dst; // int32 [pages]
	uint64_t encoded;  // uint8 [pages], 1; 0 where a page cannot be coded
	int32_t pages, slots, heads, features;
} lc_encode_params;

// lc_roof_params serves the kernels that measure the device.
typedef struct {
	uint64_t data; // 16 bytes [n]
	uint64_t out;  // 4 bytes [threads of the grid]
	int64_t n;
} lc_roof_params;

// lc_attention_shared is the bytes of shared memory of an attention kernel of
// so many rows, keys loaded at once, and features that it serves, but for
// raw_bytes. Rows of features and of scores are 4 floats longer than they need
// be.
static inline LC_ANYWHERE int32_t lc_attention_shared(int32_t rows, int32_t keys, int32_t dim, int32_t terms) {
	int32_t floats = (rows + keys) * (dim + 4) + rows * (lc_tile + 4) + 6 * rows + terms * rows;
	return 4 * floats + 8 * (2 * lc_tile + rows + 2 * terms * rows);
}

// lc_decode_stride is the distance of rows of up to dim elements of so many
// bytes in the ring of a decode kernel: an odd number of units of 16 bytes.
// lc_decode_shared is the bytes of its shared memory.
static inline LC_ANYWHERE int32_t lc_decode_stride(int32_t dim, int32_t bytes) { return dim * bytes + 16; }
static inline LC_ANYWHERE int32_t lc_decode_shared(int32_t rows, int32_t dim, int32_t bytes) {
	int32_t tiles = lc_chunk / lc_tile;
	return 4 * rows * (dim + 4 + lc_chunk + 2 * tiles) + 8 * (lc_chunk + rows * tiles) + 2 * lc_tile * lc_decode_stride(dim, bytes);
}

// lc_decode_groups is the bytes behind a tile in the ring where pages may be coded:
// scales and zeros in F16, of the keys of each page of a tile or of each group of
// the values. lc_decode_coded_shared is the bytes of shared memory, with those of
// the keys once more, widened.
static inline LC_ANYWHERE int32_t lc_decode_pages(int32_t page_size) {
	return lc_tile % page_size == 0 ? lc_tile / page_size : page_size % lc_tile == 0 ? 1 : (lc_tile - 2) / page_size + 2;
}
static inline LC_ANYWHERE int32_t lc_decode_groups(int32_t dim, int32_t page_size, int32_t groups) {
	int32_t keys = 4 * dim * lc_decode_pages(page_size), values = 4 * lc_tile * groups;
	return keys > values ? keys : values;
}
static inline LC_ANYWHERE int32_t lc_decode_coded_shared(int32_t rows, int32_t dim, int32_t bytes, int32_t page_size, int32_t groups) {
	return lc_decode_shared(rows, dim, bytes) + 2 * lc_decode_groups(dim, page_size, groups) + 8 * (lc_chunk / lc_tile) +
		4 * lc_decode_pages(page_size) * (2 * dim + 4);
}

// lc_merge_shared is the bytes of shared memory of attention_merge.
static inline LC_ANYWHERE int32_t lc_merge_shared(void) { return 4 * 5 * 128; }

// lc_total_floats is the size of the state that a block of an attention kernel
// keeps in the workspace: outputs, and for each thread the maxima of its rows.
static inline LC_ANYWHERE int32_t lc_total_floats(int32_t rows, int32_t dim) { return rows * dim + (rows / 8 + 3) / 4 * 4 * 128; }

// lc_gradient_shared is the bytes of shared memory of the kernels of gradient.cuh;
// lc_gradient_sums and lc_gradient_turned are the floats of their workspace, for
// each thread block.
static inline LC_ANYWHERE int32_t lc_gradient_shared(int32_t terms) { return 4 * (4 * 64 * 68 + (2 + terms) * 64) + 8 * 64 * (2 + terms); }
static inline LC_ANYWHERE int32_t lc_gradient_slices(int32_t features) { return (features + 63) / 64; }
static inline LC_ANYWHERE int64_t lc_gradient_sums(int32_t slices) { return (int64_t)slices * 64 * 64; }
static inline LC_ANYWHERE int64_t lc_gradient_turned(int32_t terms, int32_t head_dim) { return (int64_t)terms * 64 * 64 * lc_gradient_slices(head_dim); }

// lc_scores_shared and lc_topk_shared are the bytes of shared memory of
// page_scores and topk_rows.
// lc_key_scores_shared and lc_code_scores_shared are those of key_scores, of so
// many rows, and of code_scores.
enum { lc_code_floats = 8192 };
static inline LC_ANYWHERE int32_t lc_key_scores_shared(int32_t rows) { return 4 * (rows + lc_tile) * 68 + 8 * lc_tile; }
static inline LC_ANYWHERE int32_t lc_code_scores_shared(void) { return 4 * lc_code_floats; }
// lc_loss_shared is that of loss_queries and loss_keys.
static inline LC_ANYWHERE int32_t lc_loss_shared(void) { return 4 * 3 * 64 * 68; }
// lc_scan_shared is that of the scans, with gates of channels or without.
static inline LC_ANYWHERE int32_t lc_scan_shared(int32_t channels) { return 4 * (4 * 64 * 68 + 5 * 64) + 8 * (channels ? 65 * 64 : 66); }
static inline LC_ANYWHERE int32_t lc_topk_shared(void) { return 4 * (256 + 8); }
static inline LC_ANYWHERE int32_t lc_scores_shared(void) { return 4 * (64 + 16) * (32 + 1); }

#define LC_SIZE(type, bytes) typedef char lc_size_of_##type[sizeof(type) == (bytes) ? 1 : -1]
LC_SIZE(lc_tensor, 48);
LC_SIZE(lc_scalars, 32);
LC_SIZE(lc_coded, 152);
LC_SIZE(lc_sequence, 72);
LC_SIZE(lc_item, 40);
LC_SIZE(lc_counts, 16);
LC_SIZE(lc_attention_params, 1000);
LC_SIZE(lc_span, 24);
LC_SIZE(lc_gradient_params, 1320);
LC_SIZE(lc_merge_params, 256);
LC_SIZE(lc_rotate_params, 96);
LC_SIZE(lc_append_params, 152);
LC_SIZE(lc_copy_params, 80);
LC_SIZE(lc_gather_params, 104);
LC_SIZE(lc_roof_params, 24);
LC_SIZE(lc_bounds_params, 208);
LC_SIZE(lc_scores_params, 256);
LC_SIZE(lc_encode_params, 272);
LC_SIZE(lc_key_scores_params, 248);
LC_SIZE(lc_code_scores_params, 224);
LC_SIZE(lc_score_side, 112);
LC_SIZE(lc_loss_params, 400);
LC_SIZE(lc_scan_params, 448);
LC_SIZE(lc_topk_params, 88);
#undef LC_SIZE

#endif
