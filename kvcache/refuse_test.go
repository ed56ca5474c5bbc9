package kvcache_test

import (
	"errors"
	"math"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// TestFailedAlloc: New returns the backend's error, whichever tensor it is.
func TestFailedAlloc(t *testing.T) {
	for call := int64(1); call <= 4; call++ {
		b := &hostBackend{}
		b.failAlloc.Store(call)
		var memory *kernel.OutOfMemoryError
		if c, err := kvcache.New(b, small()); c != nil || !errors.As(err, &memory) {
			t.Errorf("Alloc %d: %v, want an OutOfMemoryError", call, err)
		}
	}
}

// TestFailedAllocOfCodedPages: so does each tensor of coded pages.
func TestFailedAllocOfCodedPages(t *testing.T) {
	for call := int64(1); call <= 16; call++ {
		b := &hostBackend{}
		b.failAlloc.Store(call)
		var memory *kernel.OutOfMemoryError
		if c, err := kvcache.New(b, smallCoded(kernel.Int8)); c != nil || !errors.As(err, &memory) {
			t.Errorf("Alloc %d: %v, want an OutOfMemoryError", call, err)
		}
	}
}

// TestBytes: the estimate is what New allocates.
func TestBytes(t *testing.T) {
	for _, dtype := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
		c := kvcache.Config{Layers: 3, Pages: 5, PageSize: 7, KVHeads: 2, HeadDim: 11, ValueDim: 13, DType: dtype}
		b := &hostBackend{}
		cache, err := kvcache.New(b, c)
		if err != nil {
			t.Fatal(err)
		}
		want, err := kvcache.Bytes(c)
		if got := b.allocated.Load(); err != nil || got != want || cache.Stats().Bytes != want {
			t.Errorf("%v: %d bytes allocated, %d estimated (%v), %d in Stats", dtype, got, want, err, cache.Stats().Bytes)
		}
	}
	for _, codec := range []kernel.Coding{coding(kernel.Int8, 10), coding(kernel.Int4, 10), {}} {
		c := kvcache.Config{Layers: 3, Pages: 5, PageSize: 7, KVHeads: 2, HeadDim: 24, ValueDim: 40, DType: tensor.F8E4M3, Coding: codec, CodedPages: 11}
		if codec.IsZero() {
			c.HeadDim, c.ValueDim, c.LayerCoding, c.Levels = 32, 64, []kernel.Coding{everyKind(), kernel.KIVI(kernel.Int1, 64), kernel.KIVI(kernel.Int2, 64)}, straightLevels(3, 2, everyKind())
		}
		b := &hostBackend{}
		cache, err := kvcache.New(b, c)
		if err != nil {
			t.Fatal(err)
		}
		want, err := kvcache.Bytes(c)
		if got := b.allocated.Load(); err != nil || got != want || cache.Stats().Bytes != want {
			t.Errorf("%v: %d bytes allocated, %d estimated (%v), %d in Stats", codec, got, want, err, cache.Stats().Bytes)
		}
	}
	// Llama-3 8B at 128k: 32 layers, 8 KV heads of 128, bf16: 16 GiB.
	// in pages of 128 of int4, 4.5 bits a value and 4.25 a key: 4.375 of 16
	q := kvcache.Config{Layers: 32, Pages: 2, PageSize: 128, KVHeads: 8, HeadDim: 128, ValueDim: 128, DType: tensor.BF16, Coding: kernel.KIVI(kernel.Int4, 128), CodedPages: 1022}
	if n, err := kvcache.Bytes(q); n != 1022*(4<<30)*35/32/1024+2*(16<<20) || err != nil {
		t.Errorf("%d bytes (%v) in int4", n, err)
	}
	c := kvcache.Config{Layers: 32, Pages: 8192, PageSize: 16, KVHeads: 8, HeadDim: 128, ValueDim: 128, DType: tensor.BF16}
	if n, err := kvcache.Bytes(c); n != 16<<30 || err != nil {
		t.Errorf("%d bytes (%v), want 16 GiB", n, err)
	}
}

// TestConfigRefused: each bad Config is a ValueError that names the field.
func TestConfigRefused(t *testing.T) {
	for want, change := range map[string]func(*kvcache.Config){
		"Config.Layers":     func(c *kvcache.Config) { c.Layers = 0 },
		"Config.Pages":      func(c *kvcache.Config) { c.Pages = -1 },
		"Config.PageSize":   func(c *kvcache.Config) { c.PageSize = -1 },
		"Config.KVHeads":    func(c *kvcache.Config) { c.KVHeads = 0 },
		"Config.HeadDim":    func(c *kvcache.Config) { c.HeadDim = 0 },
		"Config.ValueDim":   func(c *kvcache.Config) { c.ValueDim = 0 },
		"Config.DType":      func(c *kvcache.Config) { c.DType = 0 },
		"Config.KeyStorage": func(c *kvcache.Config) { c.KeyStorage = 2 },
		"Config.Coding":     func(c *kvcache.Config) { *c = smallCoded(9) },
		"Config.LayerCoding": func(c *kvcache.Config) {
			*c = smallCoded(kernel.Int8)
			c.Coding, c.LayerCoding = kernel.Coding{}, []kernel.Coding{c.Coding}
		},
		"Config.LayerCoding[1]": func(c *kvcache.Config) {
			*c = smallCoded(kernel.Int8)
			c.Coding, c.LayerCoding = kernel.Coding{}, []kernel.Coding{c.Coding, {}}
		},
		"Config.Levels": func(c *kvcache.Config) { *c = smallCoded(kernel.Int8); c.Coding.Key.Levels = true },
		"Config.Levels[0]": func(c *kvcache.Config) {
			*c = smallCoded(kernel.Int8)
			c.Coding.Key.Levels, c.Levels = true, make([]kvcache.Levels, 2)
		},
		"Config.CodedPages": func(c *kvcache.Config) { *c = smallCoded(kernel.Int8); c.CodedPages = 0 },
		"Config.Residual":   func(c *kvcache.Config) { *c = smallCoded(kernel.Int8); c.Residual = 6 },
		"Config.Scales":     func(c *kvcache.Config) { c.Scales = make([]kvcache.Scales, 2) },
		"Config.Scales[1]": func(c *kvcache.Config) {
			c.DType, c.Scales = tensor.F8E5M2, make([]kvcache.Scales, 2)
			c.Scales[1].Value = tensor.New(tensor.F32, 2)
		},
		"Config.Pages·PageSize": func(c *kvcache.Config) { c.Pages, c.PageSize = 1<<20, 1<<11 },
		"Config":                func(c *kvcache.Config) { c.Layers, c.Pages, c.KVHeads, c.HeadDim = 1<<20, 1<<28, 1<<20, 1<<20 },
	} {
		c := small()
		change(&c)
		var value *kvcache.ValueError
		if _, err := kvcache.New(&hostBackend{}, c); !errors.As(err, &value) || value.Name != want {
			t.Errorf("%s: error %v", want, err)
		}
		if _, err := kvcache.Bytes(c); !errors.As(err, &value) {
			t.Errorf("%s: Bytes gave %v", want, err)
		}
	}
	for want, change := range map[string]func(*kvcache.Config){
		"Config.DType":      func(c *kvcache.Config) { c.DType = tensor.U8 },
		"Config.Residual":   func(c *kvcache.Config) { c.Residual = -4 },
		"Config.Coding":     func(c *kvcache.Config) { c.Coding.Value.Group = 3 },
		"Config.HeadDim":    func(c *kvcache.Config) { c.HeadDim = 1 << 20 },
		"Config.ValueDim":   func(c *kvcache.Config) { c.ValueDim = 1 << 20 },
		"Config.Levels":     func(c *kvcache.Config) { c.Levels = make([]kvcache.Levels, 2) },
		"Config.CodedPages": func(c *kvcache.Config) { c.Coding = kernel.Coding{} },
		"Config":            func(c *kvcache.Config) { c.Layers, c.CodedPages, c.KVHeads = 1<<28, 1<<28, 1<<28 },
	} {
		c := smallCoded(kernel.Int4)
		change(&c)
		var value *kvcache.ValueError
		if _, err := kvcache.New(&hostBackend{}, c); !errors.As(err, &value) || value.Name != want {
			t.Errorf("%s: error %v", want, err)
		}
	}
	long := small()
	long.PageSize = math.MaxInt // on 32 bits a number that a field can be, and no product
	var value *kvcache.ValueError
	if _, err := kvcache.New(&hostBackend{}, long); !errors.As(err, &value) || value.Name != "Config.PageSize" && value.Name != "Config.Pages·PageSize" {
		t.Errorf("pages of %d tokens: error %v", math.MaxInt, err)
	}
	if _, err := kvcache.New(nil, small()); err == nil {
		t.Error("a nil backend was accepted")
	}
	c := small()
	c.Layers, c.KVHeads, c.PageSize, c.Pages = 1, 1, 1<<11, 1<<20-1 // the most slots, 2³¹−2¹¹
	if _, err := kvcache.Bytes(c); err != nil {
		t.Error(err)
	}
}

// TestAppendRefused: what does not fit is not stored.
func TestAppendRefused(t *testing.T) {
	m := fixed(t, small())
	id := m.start(5)
	own, shared := m.pages(m.start(1))[0]*4, m.pages(id)[0]*4
	m.branch(id)
	m.check("Fork")
	key, value := rowsOf(m.config, 0, []token{{value: 1 << 20}})
	slot, wrong := new(*kvcache.SlotError), new(*kvcache.ValueError)
	for _, tt := range []struct {
		name       string
		layer      int
		slot       int32
		key, value tensor.View
		target     any
	}{
		{"layer −1", -1, own, key, value, wrong},
		{"layer 2 of 2", 2, own, key, value, wrong},
		{"slot −2", 0, -2, key, value, slot},
		{"slot past the end", 0, 24, key, value, slot},
		{"slot 2³¹−1", 0, math.MaxInt32, key, value, slot},
		{"free page", 0, 23, key, value, slot},
		{"shared page", 0, shared, key, value, slot},
		{"key for value", 0, own, key, key, wrong},
		{"value for key", 0, own, value, value, wrong},
		{"too many rows", 0, own, tensor.New(tensor.F32, 2, 1, 3), value, wrong},
		{"rank 2", 0, own, tensor.New(tensor.F32, 1, 3), value, wrong},
		{"no key", 0, own, tensor.View{}, value, nil},
		{"rank 9", 0, own, tensor.View{Buf: key.Buf, DType: tensor.F32, Rank: 9}, value, nil},
	} {
		err := m.cache.Append(tt.layer, []int32{tt.slot}, tt.key, tt.value)
		if err == nil || tt.target != nil && !errors.As(err, tt.target) {
			t.Errorf("%s: error %v", tt.name, err)
		}
	}
	m.ok("a dropped row", m.cache.Append(0, []int32{-1}, key, value))
	m.ok("no rows", m.cache.Append(0, nil, tensor.New(tensor.F32, 0, 1, 3), tensor.New(tensor.F32, 0, 1, 2)))
	m.check("Append")
}

// TestTooLong: lengths and positions end at 2³¹−1.
func TestTooLong(t *testing.T) {
	m := fixed(t, small())
	id := m.cache.NewSequence()
	ids := []kvcache.ID{id}
	if _, err := m.cache.ExtendAt(ids, []int{1}, []int32{math.MaxInt32}, nil); err != nil {
		t.Fatal(err)
	}
	var long *kvcache.TooLongError
	for _, n := range []int{1, math.MaxInt32, math.MaxInt} {
		if _, err := m.cache.Extend(ids, []int{n}, nil); !errors.As(err, &long) {
			t.Errorf("%d tokens after position 2³¹−1: %v", n, err)
		}
	}
	if _, err := m.cache.Extend(ids, []int{0}, nil); err != nil {
		t.Errorf("no tokens after position 2³¹−1: %v", err)
	}
	if err := m.cache.CheckIntegrity(); err != nil {
		t.Error(err)
	}
}

// TestForeignID: the ID of one cache is unknown to another.
func TestForeignID(t *testing.T) {
	a, b := fixed(t, small()), fixed(t, small())
	id := a.start(3)
	b.start(3)
	var unknown *kvcache.UnknownSequenceError
	if _, err := b.cache.Len(id); !errors.As(err, &unknown) || unknown.ID != id {
		t.Errorf("Len: %v", err)
	}
	if _, err := b.cache.Positions(id, nil); !errors.As(err, &unknown) {
		t.Errorf("Positions: %v", err)
	}
	if _, _, err := b.cache.Gather(0, id); !errors.As(err, &unknown) {
		t.Errorf("Gather: %v", err)
	}
	if p := b.cache.Sequences(id).KeyPositions(nil); p != nil {
		t.Errorf("KeyPositions: %v", p)
	}
}

// TestGatherNeedsHost: memory that this process cannot read is refused.
func TestGatherNeedsHost(t *testing.T) {
	cache, err := kvcache.New(deviceBackend{&hostBackend{}}, small())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := cache.Gather(0, cache.NewSequence()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Gather: %v", err)
	}
	if _, _, err := cache.Gather(2, cache.NewSequence()); err == nil {
		t.Error("Gather of layer 2 of 2")
	}
	// A backend that gives less than it was asked for is found out.
	if _, err := kvcache.New(stingyBackend{&hostBackend{}}, small()); err == nil {
		t.Error("a buffer too small was accepted")
	}
}

type deviceBuffer int64

func (deviceBuffer) Device() string { return "device:0" }
func (b deviceBuffer) Size() int64  { return int64(b) }

type deviceBackend struct{ *hostBackend }

func (deviceBackend) Alloc(n int64) (tensor.Buffer, error) { return deviceBuffer(n), nil }

type stingyBackend struct{ *hostBackend }

func (stingyBackend) Alloc(n int64) (tensor.Buffer, error) { return tensor.NewHost(n - 4), nil }
