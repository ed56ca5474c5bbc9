package tier

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/longctx/longctx/kvcache/page"
)

// TestPrefix: the pages up to the first that is missing, whatever the number of
// calls at once, of which there are no more than asked for.
func TestPrefix(t *testing.T) {
	ctx := context.Background()
	for parallel := 1; parallel <= 8; parallel *= 2 {
		r := newRemote()
		var under, most atomic.Int64
		r.fault = func(op string, k page.Key) error {
			if op == "Get" {
				n := under.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
				under.Add(-1)
			}
			return nil
		}
		m := manager(t, Options{}, Level{Store: r})
		var keys []page.Key
		for i := range 30 {
			keys = append(keys, key(i))
			must(t, m.Put(ctx, key(i), blob(key(i), 1)))
		}
		must(t, m.Flush(ctx))
		for _, missing := range []int{30, 29, 17, 3, 0} {
			if missing < 30 {
				must(t, m.Delete(ctx, key(missing)))
			}
			got, err := m.Prefix(ctx, keys, parallel)
			if err != nil || len(got) != missing {
				t.Fatalf("%d at once: %d pages, %v, want %d", parallel, len(got), err, missing)
			}
			for i, b := range got {
				if !bytes.Equal(b, blob(key(i), 1)) {
					t.Fatalf("page %d is wrong", i)
				}
			}
		}
		if n := int(most.Load()); n > parallel || parallel > 1 && n < 2 {
			t.Errorf("%d calls at once, asked for %d", n, parallel)
		}
		if got, err := m.Prefix(ctx, nil, parallel); err != nil || len(got) != 0 {
			t.Errorf("of no keys: %d, %v", len(got), err)
		}
	}
}

func TestPrefixCancelled(t *testing.T) {
	r := newRemote()
	m := manager(t, Options{}, Level{Store: r})
	must(t, m.Put(context.Background(), key(0), blob(key(0), 1)))
	must(t, m.Flush(context.Background()))
	ctx, cancel := context.WithCancel(context.Background())
	r.set(func() {
		r.fault = func(_ string, k page.Key) error {
			if k == key(1) {
				cancel()
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
	})
	got, err := m.Prefix(ctx, []page.Key{key(0), key(1), key(2)}, 1)
	if len(got) != 1 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d pages, %v", len(got), err)
	}
	var option *OptionError
	if _, err := m.Prefix(ctx, nil, 0); !errors.As(err, &option) {
		t.Error(err)
	}
}
