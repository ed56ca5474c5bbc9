package tier

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/longctx/longctx/kvcache/page"
)

// Prefix gets the pages of keys in order, up to the first that no level has:
// those of a prompt, say. So many calls of Get are under way at once, 1 or more;
// a server far away wants several. An error is that of a context that has ended
// or ErrClosed; the pages before it are returned with it.
func (m *Manager) Prefix(ctx context.Context, keys []page.Key, parallel int) ([][]byte, error) {
	if parallel < 1 {
		return nil, &OptionError{"Prefix: parallel", fmt.Sprint(parallel), "1 or more"}
	}
	blobs := make([][]byte, len(keys))
	var mu sync.Mutex // of all below
	next, end := 0, len(keys)
	var failed error // of the page at end
	take := func() (i int, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		i, next = next, next+1
		return i, i < end
	}
	missed := func(i int, err error) {
		mu.Lock()
		defer mu.Unlock()
		if i >= end {
			return
		}
		end, failed = i, nil
		if !errors.Is(err, ErrNotFound) {
			failed = err
		}
	}
	var work sync.WaitGroup
	for range min(parallel, len(keys)) {
		work.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				b, err := m.Get(ctx, keys[i], nil)
				if err != nil {
					missed(i, err)
					return // what follows is not wanted
				}
				blobs[i] = b
			}
		})
	}
	work.Wait()
	return blobs[:end], failed
}
