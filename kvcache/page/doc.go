// Package page is the format in which pages of a cache are kept outside it: on
// disk, in a remote store, on the way to another process.
//
// # Format, versions 1 and 2
//
// A page is a header, a namespace and a payload, one after the other. Integers
// are little-endian and without a sign, unless said otherwise.
//
//	 0  8  "LCKVPAGE"
//	 8  2  version: 1 without a codec, or with int8 or int4 for both keys (per channel)
//	       and values (in groups) and nothing beside; else 2
//	10  2  bytes of the header, 128
//	12  4  CRC-32C of the header, with these four bytes 0, and the namespace
//	16  4  CRC-32C of the payload
//	20  4  bytes of the namespace, at most MaxNamespace
//	24  8  bytes of the payload
//	32 32  Key.Hash
//	64  4  Layout.FirstLayer
//	68  4  Layout.Layers
//	72  4  Layout.PageSize
//	76  4  Header.Tokens, 1 to PageSize
//	80  4  Layout.KVHeads
//	84  4  Layout.HeadDim
//	88  4  Layout.ValueDim
//	92  4  Group of values, 0 without a codec
//	96  1  element type: 1 f32, 2 f16, 3 bf16, 4 f8e4m3, 5 f8e5m2
//	97  1  codec, in version 2 of keys: 0 none, 1 int8, 2 int4, 3 int2, 4 int1
//	98  1  keys: 0 stored before their rotation (pre-RoPE), 1 after it
//	99 29  0, or in version 2
//	99  1  codec of values
//	100 4  Group of keys
//	104 4  Outliers of keys
//	108 4  Outliers of values
//	112 1  Rank of keys
//	113 1  Rank of values
//	114 1  bits: 1 Levels of keys, 2 RMS of keys, 4 Levels of values, 8 RMS of values
//	115 13 0
//	128    the namespace, then the payload
//
// The payload is a list of segments. Each begins at a multiple of Align bytes
// from the start of the payload, and 0 fills what is between. The first are the
// positions of the tokens, PageSize integers of 32 bits with a sign, of which
// those past Tokens are 0. Then, for each layer,
//
//	keys    [KVHeads, PageSize, HeadDim]   of the element type
//	values  [KVHeads, PageSize, ValueDim]
//
// row-major, or with a codec (package kernel says what the codes mean), first of keys
// and then of values, of dim features,
//
//	codes     [KVHeads, PageSize, RowBytes(dim)]   bytes
//	scales    [KVHeads, dim], with a Group [KVHeads, PageSize, dim/Group] f16
//	zeros     likewise
//	outliers  [KVHeads, 4·Outliers]                bytes, if there are any
//	left      [KVHeads, PageSize, Rank]            f16, with a Rank
//	right     [Rank, KVHeads, dim]                 f16, with a Rank
//
// Levels are not in the page: like the scales of FP8, Key.Namespace has to say them.
//
// Rows of tokens past Tokens are 0. Floating-point numbers have the bits of
// package tensor's types, little-endian.
//
// CRC-32C finds every fault of up to three bits and every burst of up to 32 in
// what it covers, and others but for one in 2³². It is no defence against
// someone who writes pages to deceive: a store that others write to must be
// trusted.
//
// A reader refuses a version that it does not know with a *VersionError. What
// may change without a new version: nothing.
package page
