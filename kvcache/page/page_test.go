package page_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/tensor"
)

func example(namespace string) page.Header {
	return page.Header{
		Key:    page.Key{Namespace: namespace, Hash: sha256.Sum256([]byte("tokens"))},
		Layout: page.Layout{FirstLayer: 3, Layers: 2, PageSize: 4, KVHeads: 1, HeadDim: 3, ValueDim: 2, DType: tensor.F16, KeyStorage: kernel.PostRoPE},
		Tokens: 3,
	}
}

// codings are those of version 1, and then of version 2.
var codings = []kernel.Coding{
	{}, kernel.KIVI(kernel.Int8, 32), kernel.KIVI(kernel.Int4, 32), kernel.KIVI(kernel.Int2, 32),
	{Key: kernel.Quantizer{Codec: kernel.Int1, Group: 32, RMS: true, Levels: true}, Value: kernel.Quantizer{Codec: kernel.Int8, Group: 16, Levels: true, Outliers: 3}},
	{Key: kernel.Quantizer{Codec: kernel.Int4, Outliers: 5, Rank: 2}, Value: kernel.Quantizer{Codec: kernel.Int2, Group: 32, Rank: 1}},
	{Key: kernel.Quantizer{Codec: kernel.Int4}, Value: kernel.Quantizer{Codec: kernel.Int4}},
}

func coded(c kernel.Coding) page.Header {
	h := example("coded")
	h.Layout.HeadDim, h.Layout.ValueDim, h.Layout.Coding = 32, 32, c
	return h
}

func random(t testing.TB, h *page.Header) []byte {
	_, n, err := h.Layout.Segments()
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range payload {
		payload[i] = byte(rng.Uint32())
	}
	b, err := page.Append(nil, h, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBytes: the bytes of the documentation, written out by hand.
func TestBytes(t *testing.T) {
	h := example("model")
	b := random(t, &h)
	const want = "4c434b5650414745" + "0100" + "8000" + // magic, version, header
		"........" + "........" + "05000000" + "4001000000000000" + // sums, namespace, payload of 5·64
		"................................................................" +
		"03000000" + "02000000" + "04000000" + "03000000" + "01000000" + "03000000" + "02000000" + "00000000" +
		"02" + "00" + "01" + "0000000000000000000000000000000000000000000000000000000000" + "6d6f64656c"
	got := hex.EncodeToString(b[:page.HeaderBytes+5])
	for i := range want {
		if want[i] != '.' && got[i] != want[i] {
			t.Fatalf("digit %d of\n%s, want\n%s", i, got, want)
		}
	}
	if !bytes.Equal(b[32:64], h.Key.Hash[:]) || len(b) != page.HeaderBytes+5+5*64 {
		t.Errorf("hash or length %d is wrong", len(b))
	}
	if name := h.Key.Name(); len(name) != 64 || name == (page.Key{Namespace: "mode", Hash: h.Key.Hash}).Name() {
		t.Errorf("name %s", name)
	}
}

// TestSegments: coded pages, at the offsets of the documentation.
func TestSegments(t *testing.T) {
	l := page.Layout{Layers: 1, PageSize: 20, KVHeads: 2, HeadDim: 16, ValueDim: 8, DType: tensor.F32, Coding: kernel.KIVI(kernel.Int4, 8)}
	l.Coding.Value.Group = 4
	list, n, err := l.Segments()
	if err != nil {
		t.Fatal(err)
	}
	want := []page.Segment{{0, 80, 4}, {128, 320, 1}, {448, 64, 2}, {512, 64, 2}, {576, 160, 1}, {768, 160, 2}, {960, 160, 2}}
	for i := range want {
		if list[i] != want[i] {
			t.Errorf("segment %d is %v, want %v", i, list[i], want[i])
		}
	}
	if len(list) != 1+l.SegmentsOf() || n != 1152 {
		t.Errorf("%d segments, %d bytes", len(list), n)
	}
}

// TestCodings: every Coding goes into a page and comes out, in the first version that
// has it, and a segment has the bytes of its tensor.
func TestCodings(t *testing.T) {
	for i, c := range codings {
		h := coded(c)
		b := random(t, &h)
		if got, _, err := page.Parse(b); err != nil || got != h {
			t.Errorf("%v: %+v (%v), want %+v", c, got.Layout.Coding, err, h.Layout.Coding)
		}
		if version := int(b[8]); version != 1+min(i/3, 1) {
			t.Errorf("%v: version %d", c, version)
		}
		list, _, err := h.Layout.Segments()
		if err != nil || len(list) != 1+2*h.Layout.SegmentsOf() {
			t.Errorf("%v: %d segments (%v)", c, len(list), err)
		}
		if c.IsZero() {
			continue
		}
		sum := int64(0)
		for _, s := range list[1:] {
			sum += s.Bytes
		}
		if want := 2 * (c.Key.PageBytes(4, 32) + c.Value.PageBytes(4, 32)); sum != want {
			t.Errorf("%v: %d bytes of two layers, want %d", c, sum, want)
		}
		b[8] ^= 3 // the other version
		page.Seal(b)
		var format *page.FormatError
		if _, _, err := page.Parse(b); !errors.As(err, &format) {
			t.Errorf("%v in the other version: %v", c, err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, ns := range []string{"", "model", strings.Repeat("x", page.MaxNamespace)} {
		h := example(ns)
		b := random(t, &h)
		got, payload, err := page.Parse(b)
		if err != nil || got != h {
			t.Fatalf("%+v (%v), want %+v", got, err, h)
		}
		again, err := page.Append([]byte("before"), &got, payload)
		if err != nil || !bytes.Equal(again[6:], b) {
			t.Error("the page written again differs", err)
		}
		if head, n, err := page.ParseHeader(b[:page.HeaderBytes+len(ns)]); err != nil || head != h || n != int64(len(b)) {
			t.Errorf("header alone: %+v, %d, %v", head, n, err)
		}
		if n, err := h.Bytes(); err != nil || n != int64(len(b)) {
			t.Errorf("Bytes %d, %v, want %d", n, err, len(b))
		}
	}
}

// TestEveryBitCounts: one bit changed anywhere, or a byte missing or too many,
// is an error of the documented types.
func TestEveryBitCounts(t *testing.T) {
	for _, h := range []page.Header{example("model"), coded(codings[5])} {
		everyBit(t, h)
	}
}

func everyBit(t *testing.T, h page.Header) {
	b := random(t, &h)
	judge := func(what string, b []byte, at int) {
		t.Helper()
		var format *page.FormatError
		var version *page.VersionError
		if _, _, err := page.Parse(b); !errors.As(err, &format) && !errors.As(err, &version) {
			t.Fatalf("%s %d: %v", what, at, err)
		}
	}
	for i := range 8 * len(b) {
		b[i/8] ^= 1 << (i % 8)
		judge("bit", b, i)
		b[i/8] ^= 1 << (i % 8)
	}
	for n := range len(b) {
		judge("cut to", b[:n:n], n)
	}
	judge("longer", append(bytes.Clone(b), 0), 1)
	var format *page.FormatError
	if err := page.Check(b, page.Key{Namespace: "other", Hash: h.Key.Hash}); !errors.As(err, &format) {
		t.Errorf("page of another namespace: %v", err)
	}
	if err := page.Check(b, h.Key); err != nil {
		t.Error(err)
	}
}

// TestRefused: headers that cannot be are refused when written, and when a
// sound checksum vouches for them.
func TestRefused(t *testing.T) {
	for name, spoil := range map[string]func(h *page.Header){
		"no layers":       func(h *page.Header) { h.Layout.Layers = 0 },
		"first layer":     func(h *page.Header) { h.Layout.FirstLayer = -1 },
		"dtype":           func(h *page.Header) { h.Layout.DType = tensor.U8 },
		"codec":           func(h *page.Header) { h.Layout.Coding.Key.Codec = 5 },
		"key storage":     func(h *page.Header) { h.Layout.KeyStorage = 2 },
		"value group":     func(h *page.Header) { h.Layout.Coding.Value.Group = 2 },
		"no value codec":  func(h *page.Header) { h.Layout.Coding.Key.Codec = kernel.Int8 },
		"too many tokens": func(h *page.Header) { h.Tokens = 5 },
		"no tokens":       func(h *page.Header) { h.Tokens = 0 },
		"too large":       func(h *page.Header) { h.Layout.HeadDim, h.Layout.PageSize = 1<<30, 1<<30 },
		"largest": func(h *page.Header) {
			h.Layout.HeadDim, h.Layout.PageSize, h.Layout.KVHeads = 1<<31-1, 1<<31-1, 1<<31-1
		},
		"long namespace": func(h *page.Header) { h.Key.Namespace = strings.Repeat("x", page.MaxNamespace+1) },
		"many layers":    func(h *page.Header) { h.Layout.Layers = 1<<16 + 1 },
	} {
		h := example("x")
		spoil(&h)
		var layout *page.LayoutError
		if b, err := page.Append([]byte("kept"), &h, nil); !errors.As(err, &layout) || string(b) != "kept" {
			t.Errorf("%s: %v, %q", name, err, b)
		}
	}
	h := example("x")
	for at, x := range map[int]byte{10: 64, 68: 0, 71: 0x80, 76: 9, 96: 9, 97: 3, 98: 2, 127: 1, 24: 1, 20: 2} {
		b := random(t, &h)
		b[at] = x
		page.Seal(b)
		var format *page.FormatError
		if _, _, err := page.Parse(b); !errors.As(err, &format) {
			t.Errorf("byte %d = %d: %v", at, x, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	h := example("model")
	f.Add(random(f, &h))
	for _, c := range codings {
		h := coded(c)
		f.Add(random(f, &h))
	}
	f.Add([]byte("LCKVPAGE"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, payload, err := page.Parse(b)
		if err != nil {
			return
		}
		again, err := page.Append(nil, &h, payload)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a page that was read is not written again: %v", err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	h := page.Header{Layout: page.Layout{Layers: 16, PageSize: 16, KVHeads: 8, HeadDim: 128, ValueDim: 128, DType: tensor.F16}, Tokens: 16}
	blob := random(b, &h)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		if _, _, err := page.Parse(blob); err != nil {
			b.Fatal(err)
		}
	}
}
