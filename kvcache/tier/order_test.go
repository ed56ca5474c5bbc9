package tier

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/tensor"
)

func key(i int) page.Key {
	return page.Key{Namespace: "model", Hash: sha256.Sum256([]byte{byte(i), byte(i >> 8)})}
}

// blob is a page of 128 + 5 + 64 + 2·64·n bytes.
func blob(k page.Key, n int) []byte {
	h := page.Header{Key: k, Tokens: 1, Layout: page.Layout{Layers: n, PageSize: 1, KVHeads: 1, HeadDim: 16, ValueDim: 16, DType: tensor.F32}}
	b, payload, err := page.Begin(nil, &h)
	if err != nil {
		panic(err)
	}
	for i := range payload {
		payload[i] = k.Hash[i%32] + byte(i/32)
	}
	page.Seal(b)
	return b
}

// modelled is a page as the oracle of the orders knows it.
type modelled struct {
	key               page.Key
	bytes             int64
	uses, first, last int
}

// first is the page that must go first, found by sorting all.
func first(o Order, priority func(page.Key) int, list []modelled) int {
	all := make([]int, len(list))
	for i := range all {
		all[i] = i
	}
	return slices.MinFunc(all, func(i, j int) int {
		a, b := list[i], list[j]
		switch o {
		case LFU:
			return cmp.Or(cmp.Compare(a.uses, b.uses), cmp.Compare(a.last, b.last))
		case FIFO:
			return cmp.Compare(a.first, b.first)
		case ByPriority:
			return cmp.Or(cmp.Compare(priority(a.key), priority(b.key)), cmp.Compare(a.last, b.last))
		}
		return cmp.Compare(a.last, b.last)
	})
}

// TestOrders: random puts, gets and deletes let go of the pages that a list
// says, in every order, in memory and on disk.
func TestOrders(t *testing.T) {
	ctx := context.Background()
	priority := func(k page.Key) int { return int(k.Hash[0]) % 3 }
	for o := LRU; o <= ByPriority; o++ {
		for _, disk := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/disk=%v", o, disk), func(t *testing.T) {
				limits := Limits{Bytes: 4000, Order: o, Priority: priority}
				var s Bounded
				var err error
				if disk {
					s, err = OpenDisk(t.TempDir(), DiskOptions{Limits: limits, NoSync: true})
				} else {
					s, err = NewHost(limits)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				rng := rand.New(rand.NewPCG(uint64(o), 7))
				var list []modelled
				evicted := 0
				for tick := range 1500 {
					k := key(rng.IntN(20))
					at := slices.IndexFunc(list, func(m modelled) bool { return m.key == k })
					switch rng.IntN(8) {
					case 0:
						if err := s.Delete(ctx, k); err != nil {
							t.Fatal(err)
						}
						if at >= 0 {
							list = slices.Delete(list, at, at+1)
						}
					case 1, 2, 3:
						b := blob(k, 1+int(k.Hash[1])%4)
						if err := s.Put(ctx, k, b); err != nil {
							t.Fatal(err)
						}
						if at >= 0 {
							list[at].uses, list[at].last = list[at].uses+1, tick
							break
						}
						for total(list)+int64(len(b)) > limits.Bytes {
							i := first(o, priority, list)
							list = slices.Delete(list, i, i+1)
							evicted++
						}
						list = append(list, modelled{k, int64(len(b)), 1, tick, tick})
					default:
						_, err := s.Get(ctx, k, nil)
						if (err == nil) != (at >= 0) || err != nil && !errors.Is(err, ErrNotFound) {
							t.Fatalf("tick %d: Get(%v): %v, in the list at %d", tick, k, err, at)
						}
						if at >= 0 {
							list[at].uses, list[at].last = list[at].uses+1, tick
						}
					}
					u := s.(interface{ Usage() Usage }).Usage()
					if u.Pages != len(list) || u.Bytes != total(list) || u.Bytes > u.Limit || u.Evicted != int64(evicted) {
						t.Fatalf("tick %d: %+v, want %d pages of %d bytes, %d evicted", tick, u, len(list), total(list), evicted)
					}
					if v, ok := s.Victim(key(99), 4000); len(list) > 0 && (!ok || v != list[first(o, priority, list)].key) {
						t.Fatalf("tick %d: victim %v, %v", tick, v, ok)
					}
				}
				if evicted < 100 {
					t.Errorf("%d evictions mean nothing", evicted)
				}
			})
		}
	}
}

func total(list []modelled) (n int64) {
	for _, m := range list {
		n += m.bytes
	}
	return n
}

func TestOptionsRefused(t *testing.T) {
	for name, l := range map[string]Limits{"no bytes": {}, "negative": {Bytes: -1}, "order": {Bytes: 1, Order: 4}, "no priority": {Bytes: 1, Order: ByPriority}} {
		var option *OptionError
		if _, err := NewHost(l); !errors.As(err, &option) {
			t.Errorf("host, %s: %v", name, err)
		}
		if _, err := OpenDisk(t.TempDir(), DiskOptions{Limits: l}); name != "no bytes" && !errors.As(err, &option) {
			t.Errorf("disk, %s: %v", name, err)
		}
	}
	for o := LRU; o <= ByPriority; o++ {
		if got, err := ParseOrder(o.String()); err != nil || got != o {
			t.Errorf("%v: %v, %v", o, got, err)
		}
	}
	if _, err := ParseOrder("mru"); err == nil {
		t.Error("an order that is none was taken")
	}
}

// TestTooLarge: a page larger than the limit is refused and lets nothing go.
func TestTooLarge(t *testing.T) {
	ctx := context.Background()
	h, _ := NewHost(Limits{Bytes: 500})
	d, err := OpenDisk(t.TempDir(), DiskOptions{Limits: Limits{Bytes: 500}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, s := range []Bounded{h, d} {
		if err := s.Put(ctx, key(1), blob(key(1), 1)); err != nil {
			t.Fatal(err)
		}
		var full *FullError
		if err := s.Put(ctx, key(2), blob(key(2), 9)); !errors.As(err, &full) || full.Limit != 500 {
			t.Errorf("%T: %v", s, err)
		}
		if _, ok := s.Victim(key(2), int64(len(blob(key(2), 9)))); ok {
			t.Errorf("%T: a victim for a page that will never fit", s)
		}
		if ok, err := s.Has(ctx, key(1)); !ok || err != nil {
			t.Errorf("%T: the page before is gone, %v", s, err)
		}
	}
}

// TestHostDamage: a page that changed in memory is not given.
func TestHostDamage(t *testing.T) {
	ctx := context.Background()
	h, _ := NewHost(Limits{Bytes: 1 << 20})
	if err := h.Put(ctx, key(1), blob(key(1), 2)); err != nil {
		t.Fatal(err)
	}
	h.index.entries[key(1)].blob[200] ^= 8
	var corrupt *CorruptError
	if _, err := h.Get(ctx, key(1), nil); !errors.As(err, &corrupt) {
		t.Error(err)
	}
	if u := h.Usage(); u.Pages != 0 || u.Bytes != 0 || u.Corrupt != 1 {
		t.Errorf("%+v", u)
	}
}
