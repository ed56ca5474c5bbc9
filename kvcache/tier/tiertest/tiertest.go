// Package tiertest holds what every tier.Store must do, as tests.
package tiertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/tensor"
)

// Key is the key of the ith page of a namespace.
func Key(namespace string, i int) page.Key {
	return page.Key{Namespace: namespace, Hash: sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i)))}
}

// Page is the page of a key: random bytes that the key decides, in rows of so
// many tokens.
func Page(k page.Key, tokens int) []byte {
	h := page.Header{Key: k, Tokens: tokens, Layout: page.Layout{Layers: 1, PageSize: tokens, KVHeads: 1, HeadDim: 8, ValueDim: 8, DType: tensor.F32}}
	b, payload, err := page.Begin(nil, &h)
	if err != nil {
		panic(err)
	}
	seed := sha256.Sum256([]byte(k.Name()))
	rng := rand.NewChaCha8(seed)
	_, _ = rng.Read(payload) // it cannot fail
	page.Seal(b)
	return b
}

// Run tests a store. open returns an empty one with room for at least 1 MiB,
// which Run closes; damage changes a byte of the page of a key where the store
// keeps it, or is nil where that cannot be done.
func Run(t *testing.T, open func(t *testing.T) tier.Store, damage func(t *testing.T, k page.Key)) {
	ctx := context.Background()
	for name, test := range map[string]func(t *testing.T, s tier.Store){
		"put, get, delete": func(t *testing.T, s tier.Store) { contract(t, ctx, s) },
		"namespaces":       func(t *testing.T, s tier.Store) { namespaces(t, ctx, s) },
		"bad pages":        func(t *testing.T, s tier.Store) { badPages(t, ctx, s) },
		"cancelled":        cancelled,
		"concurrent":       func(t *testing.T, s tier.Store) { concurrent(t, ctx, s) },
		"closed":           func(t *testing.T, s tier.Store) { closed(t, ctx, s) },
		"damaged": func(t *testing.T, s tier.Store) {
			if damage == nil {
				t.Skip("this store's pages cannot be reached")
			}
			damaged(t, ctx, s, damage)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			test(t, s)
			if err := s.Close(); err != nil {
				t.Error("Close:", err)
			}
		})
	}
}

// has fails the test if the store does not hold want under k; nil: nothing.
func has(t *testing.T, ctx context.Context, s tier.Store, k page.Key, want []byte) {
	t.Helper()
	there, err := s.Has(ctx, k)
	if err != nil || there != (want != nil) {
		t.Fatalf("Has(%v) is %v, %v, want %v", k, there, err, want != nil)
	}
	got, err := s.Get(ctx, k, []byte("kept"))
	if want == nil {
		if !errors.Is(err, tier.ErrNotFound) || string(got) != "kept" {
			t.Fatalf("Get(%v) of a page that is not there: %q, %v", k, got, err)
		}
		return
	}
	if err != nil || string(got[:4]) != "kept" || !bytes.Equal(got[4:], want) {
		t.Fatalf("Get(%v): %d bytes, %v, want %d others", k, len(got), err, len(want))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func contract(t *testing.T, ctx context.Context, s tier.Store) {
	k := Key("a", 1)
	has(t, ctx, s, k, nil)
	must(t, s.Delete(ctx, k))
	b := Page(k, 16)
	must(t, s.Put(ctx, k, b))
	want := bytes.Clone(b)
	clear(b) // the store has its own
	has(t, ctx, s, k, want)
	must(t, s.Put(ctx, k, want))
	has(t, ctx, s, k, want)
	must(t, s.Delete(ctx, k))
	has(t, ctx, s, k, nil)
	must(t, s.Put(ctx, k, want))
	has(t, ctx, s, k, want)
}

// namespaces: a page is never given for another namespace, also where one is a
// prefix of the other or has bytes that names of files and keys cannot have.
func namespaces(t *testing.T, ctx context.Context, s tier.Store) {
	list := []string{"", "a", "ab", "a/b", "a:b", "../a", "\x00", "a\nb", "…", string(bytes.Repeat([]byte("n"), page.MaxNamespace))}
	for i, ns := range list {
		for _, other := range list[i:] {
			has(t, ctx, s, Key(other, 1), nil)
		}
		k := Key(ns, 1)
		must(t, s.Put(ctx, k, Page(k, 4)))
	}
	must(t, s.Delete(ctx, Key("a", 1)))
	for _, ns := range list {
		k := Key(ns, 1)
		want := Page(k, 4)
		if ns == "a" {
			want = nil
		}
		has(t, ctx, s, k, want)
	}
}

func badPages(t *testing.T, ctx context.Context, s tier.Store) {
	k := Key("a", 1)
	for what, b := range map[string][]byte{"of another key": Page(Key("a", 2), 4), "of another namespace": Page(Key("b", 1), 4), "empty": nil, "cut": Page(k, 4)[:200]} {
		var format *page.FormatError
		if err := s.Put(ctx, k, b); !errors.As(err, &format) {
			t.Errorf("Put of a page that is %s: %v", what, err)
		}
		has(t, ctx, s, k, nil)
	}
}

func cancelled(t *testing.T, s tier.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	k := Key("a", 1)
	if err := s.Put(ctx, k, Page(k, 4)); !errors.Is(err, context.Canceled) {
		t.Errorf("Put: %v", err)
	}
	has(t, context.Background(), s, k, nil)
	must(t, s.Put(context.Background(), k, Page(k, 4)))
	if b, err := s.Get(ctx, k, []byte("kept")); !errors.Is(err, context.Canceled) || string(b) != "kept" {
		t.Errorf("Get: %v", err)
	}
	if _, err := s.Has(ctx, k); !errors.Is(err, context.Canceled) {
		t.Errorf("Has: %v", err)
	}
	if err := s.Delete(ctx, k); !errors.Is(err, context.Canceled) {
		t.Errorf("Delete: %v", err)
	}
	has(t, context.Background(), s, k, Page(k, 4))
}

// concurrent: whoever reads meets a right page or none.
func concurrent(t *testing.T, ctx context.Context, s tier.Store) {
	var work sync.WaitGroup
	errs := make(chan error, 8)
	for g := range 8 {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 40 {
				k := Key("a", rng.IntN(5))
				var err error
				switch rng.IntN(4) {
				case 0:
					err = s.Delete(ctx, k)
				case 1, 2:
					err = s.Put(ctx, k, Page(k, 32))
				default:
					var b []byte
					if b, err = s.Get(ctx, k, nil); err == nil && !bytes.Equal(b, Page(k, 32)) {
						err = fmt.Errorf("wrong page of %v", k)
					} else if errors.Is(err, tier.ErrNotFound) {
						err = nil
					}
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	work.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

func closed(t *testing.T, ctx context.Context, s tier.Store) {
	k := Key("a", 1)
	must(t, s.Put(ctx, k, Page(k, 4)))
	must(t, s.Close())
	_, getErr := s.Get(ctx, k, nil)
	_, hasErr := s.Has(ctx, k)
	for what, err := range map[string]error{"Put": s.Put(ctx, k, Page(k, 4)), "Get": getErr, "Has": hasErr, "Delete": s.Delete(ctx, k)} {
		if !errors.Is(err, tier.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

// damaged: a byte changed where the page is kept gives the error that says so,
// once; then the page is gone, and can be put again.
func damaged(t *testing.T, ctx context.Context, s tier.Store, damage func(t *testing.T, k page.Key)) {
	k, other := Key("a", 1), Key("a", 2)
	b := Page(k, 16)
	must(t, s.Put(ctx, other, Page(other, 16)))
	for range 3 {
		must(t, s.Put(ctx, k, b))
		damage(t, k)
		var corrupt *tier.CorruptError
		if got, err := s.Get(ctx, k, []byte("kept")); !errors.As(err, &corrupt) || corrupt.Key != k || string(got) != "kept" {
			t.Fatalf("Get of a damaged page: %q, %v", got, err)
		}
		has(t, ctx, s, k, nil)
	}
	has(t, ctx, s, other, Page(other, 16))
}

// DeadLevel tests that a Manager over a server that never answers goes on: pages
// are kept above it, and after three timeouts it is not asked. It closes s.
func DeadLevel(t *testing.T, s tier.Store) {
	t.Helper()
	ctx := context.Background()
	host, err := tier.NewHost(tier.Limits{Bytes: 1 << 20})
	must(t, err)
	m, err := tier.NewManager(tier.Options{}, tier.Level{Store: host}, tier.Level{Name: "dead", Store: s, WriteThrough: true, Timeout: 20 * time.Millisecond, Rest: time.Hour})
	must(t, err)
	start := time.Now()
	for i := range 20 {
		k := Key("a", i)
		must(t, m.Put(ctx, k, Page(k, 4)))
		var failed *tier.StoreError
		if err := m.Flush(ctx); !errors.As(err, &failed) || failed.Store != "dead" {
			t.Errorf("Flush: %v", err)
		}
		has(t, ctx, m, k, Page(k, 4))
		if _, err := m.Get(ctx, Key("b", i), nil); !errors.Is(err, tier.ErrNotFound) {
			t.Errorf("Get of a page that is nowhere: %v", err)
		}
	}
	if st := m.Stats()[1]; st.Failed != 3 || !st.Resting || time.Since(start) > 2*time.Second {
		t.Errorf("%+v after %v", st, time.Since(start))
	}
	must(t, m.Close())
}
