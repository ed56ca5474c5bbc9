// Decoding over pages that may be coded: INT8 or INT4, keys with a scale and a
// zero for each channel of a page, values for each group of a row. What
// decode.cuh says holds here too. Codes come through its ring as they are, in
// rows as long as those of plain pages, and behind them the scales and zeros of
// the tile. A code is widened in the registers of the lane that uses it, for two
// keys or all rows.
//
// Plain and coded pages may meet in a tile: its products are then made twice and
// chosen from, its values are taken run by run.
//
// By the cycles of decode.cuh, for 4 rows and keys and values of 128 features, in
// pages of 64 and groups of 32: codes are not bound by memory. Counted, not timed,
// from what the compiler makes of the inner loops for sm_90a, and as much beside
// them as with F16. A share of 4.8 TB/s brings 20.7 bytes a cycle.
//
//	      bytes of a tile  cycles of them  instructions of keys, values  cycles of all
//	F16             32768            1580                    1536, 1792           1100
//	INT8            17920             865                    2512, 3040           1650
//	INT4             9728             470                    2976, 3232           1820
//
// So a tile of codes takes about as long as its F16 does; what is saved is room.
#pragma once

#include "decode.cuh"

// code_float is a code, exactly: an integer below 2²³ in the fraction of 2²³.
DEV float code_float(uint32_t c) { return sub_(from_bits(0x4b000000u | c), 0x1p23f); }

// codes4 is the codes of four neighbouring features, of 16 bytes of a row: the
// e-th four of INT8; of INT4 those of the e-th eighth of all features, which lie
// in one nibble of four words.
template <int Codec> DEV float4 codes4(uint4 u, int e) {
	if (Codec == lc_int8) {
		uint32_t x = e == 0 ? u.x : e == 1 ? u.y : e == 2 ? u.z : u.w;
		return {code_float(x & 255), code_float(x >> 8 & 255), code_float(x >> 16 & 255), code_float(x >> 24)};
	}
	int shift = 4 * e;
	return {code_float(u.x >> shift & 15), code_float(u.y >> shift & 15), code_float(u.z >> shift & 15), code_float(u.w >> shift & 15)};
}

// decoded is what codes stand for.
DEV float4 decoded(float4 c, float4 scale, float4 zero) {
	return {fma_(c.x, scale.x, zero.x), fma_(c.y, scale.y, zero.y), fma_(c.z, scale.z, zero.z), fma_(c.w, scale.w, zero.w)};
}

template <int R, int Dim> struct CodedDecode : Decode<R, Dim, CodedDecode<R, Dim>> {
	using Base = Decode<R, Dim, CodedDecode<R, Dim>>;
	using typename Base::State;
	using Base::first, Base::item, Base::keys, Base::lane, Base::p, Base::place, Base::ring, Base::seq, Base::size, Base::stride, Base::tile, Base::tiles, Base::w;
	enum { Units = Base::Units, Row = 2 * Dim + 4 };

	uint64_t *coded; // [chunk_tiles] keys of coded pages
	float *channels; // [pages of a tile] rows of scales, then zeros, of the tile's keys
	int bytes;       // of a slot of the ring
	int groups;      // of a row of values

	DEV_METHOD CodedDecode(const lc_attention_params &params) : Base(params) {
		groups = p.value_dim / p.coded_value.group;
		bytes = lc_tile * stride + lc_decode_groups(Dim, p.page_size, groups);
		coded = (uint64_t *)(ring + decode_stages * bytes);
		channels = (float *)(coded + chunk_tiles);
	}

	DEV_METHOD char *slot(int k) const { return ring + k % decode_stages * bytes; }
	DEV_METHOD char *behind(int k) const { return slot(k) + lc_tile * stride; }

	// page is that of key j of tile n, counted from the tile's first.
	DEV_METHOD int page(int n, int j) const {
		uint32_t start = (uint32_t)first + n * lc_tile, size = (uint32_t)p.page_size;
		return (int)((start + j) / size - start / size);
	}

	// look finds out which keys are coded; those past the last are as it is.
	DEV_METHOD void look() {
		Base::look();
		if (lane < chunk_tiles) {
			uint64_t bits = 0;
			int n = size(lane);
			for (int j = 0; j < lc_tile && n > 0; j++)
				bits |= (uint64_t)(load_shared(place + lane * lc_tile + (j < n ? j : n - 1)).x < 0) << j;
			store_shared(coded + lane, bits);
		}
		sync_warp(); // the bits are there
	}

	// fetch is as that of plain pages. It asks for scales and zeros too.
	DEV_METHOD void fetch(int k) {
		if (k < 2 * tiles) {
			int n = tile(k < tiles ? k : k - tiles);
			uint64_t bits = load_shared(coded + n);
			const lc_coded &c = k < tiles ? p.coded_key : p.coded_value;
			fetch_rows(k, n, bits, k < tiles ? p.key : p.value, c, k < tiles ? p.head_dim : p.value_dim);
			if (bits != 0 && k < tiles)
				fetch_channels(k, n, bits);
			else if (bits != 0)
				fetch_groups(k, n);
		}
		copy_commit();
	}

	DEV_METHOD void fetch_rows(int k, int n, uint64_t bits, const lc_tensor &x, const lc_coded &c, int features) {
		int each = element_bytes(x.dtype), units = features * each / 16, code_units = (c.codec == lc_int4 ? features / 2 : features) / 16;
		const char *base = (const char *)x.data + load_const(&item->kv_head) * x.head * each;
		const char *codes = (const char *)c.codes.data + load_const(&item->kv_head) * c.codes.head;
		int shift = Base::lanes(~bits ? units : code_units), u0 = lane & ((1 << shift) - 1), end = size(n);
		for (int j = lane >> shift; j < end; j += decode_threads >> shift) {
			Place at = load_shared(place + n * lc_tile + j);
			bool is = at.x < 0;
			const char *from = is ? codes + ((-1 - (int64_t)at.x) * c.codes.row + at.y * c.codes.slot) : base + (at.x * x.row + at.y * x.slot) * each;
			char *to = slot(k) + j * stride;
			for (int u = u0; u < (is ? code_units : units); u += decode_threads)
				copy_async(to + 16 * u, from + 16 * u);
		}
	}

	// fetch_channels asks for scales and zeros of the keys of each coded page.
	DEV_METHOD void fetch_channels(int k, int n, uint64_t bits) {
		int units = p.head_dim / 8, each = p.page_size;
		int64_t start = first + n * lc_tile;
		for (int e = 0, j = 0; j < size(n); e++, j = (int)((start / each + e) * each - start)) {
			if (!(bits >> j & 1))
				continue;
			int64_t at = -1 - (int64_t)load_shared(place + n * lc_tile + j).x;
			for (int u = lane; u < 2 * units; u += decode_threads) {
				const lc_tensor &x = u < units ? p.coded_key.scale : p.coded_key.zero;
				const uint16_t *from = (const uint16_t *)x.data + at * x.row + load_const(&item->kv_head) * x.head;
				copy_async(behind(k) + (4 * Dim * e + 2 * (u < units ? 0 : (int)Dim) + 16 * (u < units ? u : u - units)), from + 8 * (u < units ? u : u - units));
			}
		}
	}

	// fetch_groups asks for scales and zeros of the values: side by side for each
	// key. They may be too short to be copied behind the back of the lanes.
	DEV_METHOD void fetch_groups(int k, int n) {
		const lc_tensor &a = p.coded_value.scale, &b = p.coded_value.zero;
		int each = a.vector < b.vector ? a.vector : b.vector; // 16: 8 halves; 4: 4; 1: 1
		each = each == 16 ? 8 : each;
		int units = groups / each, end = size(n) * 2 * units;
		int64_t head = load_const(&item->kv_head);
		UNROLL_BY(4) for (int i = lane; i < end; i += decode_threads) {
			int j = i / (2 * units), u = i % (2 * units);
			const lc_tensor &x = u < units ? a : b;
			Place at = load_shared(place + n * lc_tile + j);
			if (at.x >= 0)
				continue;
			const uint16_t *from = (const uint16_t *)x.data + (-1 - (int64_t)at.x) * x.row + at.y * x.slot + head * x.head + (u < units ? u : u - units) * each;
			uint16_t *to = (uint16_t *)behind(k) + 2 * groups * j + u * each;
			if (each == 8)
				copy_async(to, from);
			else if (each == 4)
				copy_async8(to, from);
			else
				store_shared(to, load_const(from));
		}
	}

	// widen_channels makes floats of the scales and zeros of keys.
	DEV_METHOD void widen_channels(int k, int n) {
		int last = page(n, size(n) - 1), fours = p.head_dim / 4;
		for (int i = lane; i < (last + 1) * 2 * fours; i += decode_threads) {
			int e = i / (2 * fours), d = i % (2 * fours);
			int at = d < fours ? 4 * d : Dim + 4 * (d - fours);
			uint2 x = load_shared((const uint2 *)(behind(k) + 4 * Dim * e + 2 * at));
			store_shared((float4 *)(channels + e * Row + at), widen4(lc_f16, {x.x, x.y, 0, 0}, 0));
		}
		sync_warp(); // the channels are there
	}

	DEV_METHOD void products(int k, float (&a)[2][R]) {
		int n = tile(k);
		uint64_t bits = load_shared(coded + n);
		if (bits == 0)
			return Base::products(k, a);
		widen_channels(k, n);
		if (p.coded_key.codec == lc_int4)
			dot_codes<lc_int4>(k, n, a);
		else
			dot_codes<lc_int8>(k, n, a);
		if (~bits == 0)
			return;
		float b[2][R];
		Base::products(k, b);
		UNROLL for (int h = 0; h < 2; h++)
			if (!(bits >> (lane + 32 * h) & 1))
				UNROLL for (int r = 0; r < R; r++) a[h][r] = b[h][r];
	}

	template <int Codec> DEV_METHOD void dot_codes(int k, int n, float (&a)[2][R]) {
		enum { Per = Codec == lc_int8 ? 4 : 8 }; // fours of 16 bytes
		UNROLL for (int r = 0; r < R; r++) a[0][r] = a[1][r] = 0.0f;
		const char *row = slot(k) + lane * stride;
		const float *scale[2];
		UNROLL for (int h = 0; h < 2; h++) {
			int j = lane + 32 * h, end = size(n);
			scale[h] = channels + page(n, j < end ? j : end - 1) * Row;
		}
		int units = p.head_dim / (4 * Per); // of 16 bytes
		if constexpr (Codec == lc_int8) {
			for (int u = 0; u < units; u++) {
				uint4 raw[2] = {load_shared((const uint4 *)(row + 16 * u)), load_shared((const uint4 *)(row + 32 * stride + 16 * u))};
				UNROLL for (int e = 0; e < Per; e++) multiply_codes<Codec>(a, raw, e, scale, 16 * u + 4 * e);
			}
		} else {
			for (int d = 0, e = 0; e < Per; e++)
				for (int u = 0; u < units; u++, d += 4) {
					uint4 raw[2] = {load_shared((const uint4 *)(row + 16 * u)), load_shared((const uint4 *)(row + 32 * stride + 16 * u))};
					multiply_codes<Codec>(a, raw, e, scale, d);
				}
		}
	}

	template <int Codec> DEV_METHOD void multiply_codes(float (&a)[2][R], const uint4 (&raw)[2], int e, const float *const (&scale)[2], int d) {
		float4 x[2];
		UNROLL for (int h = 0; h < 2; h++)
			x[h] = decoded(codes4<Codec>(raw[h], e), load_shared((const float4 *)(scale[h] + d)), load_shared((const float4 *)(scale[h] + Dim + d)));
		Base::multiply(a, x, d);
	}

	// add_tile adds the runs of keys of one kind.
	DEV_METHOD void add_tile(State &s, int k, int n, int end) {
		uint64_t bits = load_shared(coded + n);
		for (int j = 0, to; j < end; j = to) {
			bool is = bits >> j & 1;
			to = j + 1;
			if (bits == 0 || ~bits == 0)
				to = end;
			while (to < end && (bits >> to & 1) == is)
				to++;
			if (is)
				add_coded(s, k, n, j, to);
			else
				Base::add_plain(s, k, n, j, to);
		}
	}

	DEV_METHOD void add_coded(State &s, int k, int n, int from, int to) {
		bool four = p.coded_value.codec == lc_int4;
		if (four && Base::whole(n))
			add_codes<lc_int4, false>(s, k, n, from, to);
		else if (four)
			add_codes<lc_int4, true>(s, k, n, from, to);
		else if (Base::whole(n))
			add_codes<lc_int8, false>(s, k, n, from, to);
		else
			add_codes<lc_int8, true>(s, k, n, from, to);
	}

	// Codes are rows of codes in the ring, one after another. What lanes past the
	// last feature load is of no meaning.
	template <int Codec> struct Codes {
		const char *row;
		const uint16_t *scale;
		int stride, groups;
		int at[Units], shift[Units], group[Units]; // of the lane's features

		DEV_METHOD void next() { row += stride, scale += 2 * groups; }

		DEV_METHOD float4 four(int u) const {
			float f = widen_f16(load_shared(scale + group[u])), z = widen_f16(load_shared(scale + groups + group[u]));
			float4 c;
			if (Codec == lc_int4)
				c = codes4<Codec>(load_shared((const uint4 *)(row + at[u])), shift[u]);
			else
				c = codes4<Codec>({load_shared((const uint32_t *)(row + at[u])), 0, 0, 0}, 0);
			return decoded(c, {f, f, f, f}, {z, z, z, z});
		}
	};

	// add_codes adds coded keys from … to−1 of the tile.
	template <int Codec, bool Hidden> DEV_METHOD void add_codes(State &s, int k, int n, int from, int to) {
		Codes<Codec> v;
		v.row = slot(k) + from * stride, v.scale = (const uint16_t *)behind(k) + 2 * groups * from;
		v.stride = stride, v.groups = groups;
		int eighth = p.value_dim / 8;
		UNROLL for (int u = 0; u < Units; u++) {
			int d = 128 * u + 4 * lane;
			d = d < p.value_dim ? d : 0;
			v.at[u] = Codec == lc_int4 ? 4 * (d % eighth) : d;
			v.shift[u] = d / eighth;
			v.group[u] = d / p.coded_value.group;
		}
		Base::template add_rows<Hidden>(s, v, w + (n * lc_tile + from) * R, to - from);
	}
};
