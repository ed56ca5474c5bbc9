package prefix

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
)

// PageStore is where evicted pages go: a tier.Manager.
type PageStore interface {
	// Put keeps a page.
	Put(ctx context.Context, k page.Key, b []byte) error
	// Prefix gets the pages of keys up to the first that is not there, with so many
	// calls at once.
	Prefix(ctx context.Context, keys []page.Key, parallel int) ([][]byte, error)
}

// Levels are what lies below an Index: a page that is evicted goes to a store, and
// a prompt that begins with it finds it there.
//
//	levels := &prefix.Levels{Cache: cache, Space: space, Store: manager, Model: "llama-3-8b bf16"}
//	index, err := prefix.NewRadix(cache, prefix.Options{Evicted: levels.Evicted})
//	…
//	id, found, err := levels.Start(ctx, index, prompt) // in place of Match and Lease.Start
//
// Its methods may be called from several goroutines.
type Levels struct {
	Cache *kvcache.Cache
	Space *kvcache.SwapSpace // pages pass through it
	Store PageStore
	Model string // what all pages depend on: the model, the scales of FP8

	Hasher   Hasher        // that of the Index; nil: SHA256
	Parallel int           // calls of Store at once; 0: 4
	Timeout  time.Duration // of one Evicted, which waits where the Store does; 0: none

	// Failed, if not nil, is told why an evicted page was not put in the store: it is
	// gone then, and computed anew when it is wanted.
	Failed func(Evicted, error)
}

// key is that of a page. The namespace tells scopes apart also where the Hasher
// does not, and shows no store a salt.
func (l *Levels) key(s scope, h Hash) page.Key {
	root := SHA256{}.Root(&Prompt{Namespace: s.namespace, Salt: s.salt, Adapter: s.adapter})
	return page.Key{Namespace: l.Model + "/" + hex.EncodeToString(root[:]), Hash: h}
}

// Evicted is for Options.Evicted: it puts the page in the store.
func (l *Levels) Evicted(e Evicted) {
	if err := l.put(e); err != nil && l.Failed != nil {
		l.Failed(e, err)
	}
}

func (l *Levels) put(e Evicted) error {
	ctx := context.Background()
	if l.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.Timeout)
		defer cancel()
	}
	positions := make([]int32, l.Cache.Config().PageSize)
	for i := range positions {
		positions[i] = int32(e.First + i)
	}
	id, err := l.Cache.Start([]kvcache.Page{e.Page}, positions)
	if err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	key := l.key(scope{e.Namespace, e.Salt, e.Adapter}, e.Hash)
	b, err := l.Space.Export(ctx, id, 0, key, nil)
	if err := errors.Join(err, l.Cache.Free(id)); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	if err := l.Store.Put(ctx, key, b); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	return nil
}

// Start begins a sequence with what x has of p, and then what the store has, and
// returns how many tokens that is. What finds no room, in the swap space or in
// the cache after x has given what it can, is left out.
//
// An error of the store or of the context leaves the sequence, with the tokens
// found before; the caller may compute the rest. Other errors give none.
func (l *Levels) Start(ctx context.Context, x Index, p *Prompt) (id kvcache.ID, tokens int, err error) {
	lease, err := x.Match(p)
	if err != nil {
		return 0, 0, err
	}
	defer lease.Release()
	if id, err = lease.Start(); err != nil {
		return 0, 0, err
	}
	tokens = lease.Tokens()
	blobs, err := l.below(ctx, p, tokens)
	size := l.Cache.Config().PageSize
	for _, b := range blobs {
		added, failed := l.add(ctx, x, id, b)
		if !added {
			return id, tokens, errors.Join(err, failed)
		}
		tokens += size
	}
	return id, tokens, err
}

// below gets the pages of p after the first tokens.
func (l *Levels) below(ctx context.Context, p *Prompt, tokens int) ([][]byte, error) {
	h := l.Hasher
	if h == nil {
		h = SHA256{}
	}
	size := l.Cache.Config().PageSize
	hashes, err := Hashes(h, p, size)
	if err != nil {
		return nil, err
	}
	var keys []page.Key
	for _, hash := range hashes[tokens/size:] {
		keys = append(keys, l.key(p.scope(), hash))
	}
	if len(keys) == 0 {
		return nil, nil
	}
	parallel := l.Parallel
	if parallel == 0 {
		parallel = 4
	}
	blobs, err := l.Store.Prefix(ctx, keys, parallel)
	if err != nil {
		return blobs, fmt.Errorf("prefix: %w", err)
	}
	return blobs, nil
}

// add imports a page, with room made in the index.
func (l *Levels) add(ctx context.Context, x Index, id kvcache.ID, b []byte) (bool, error) {
	for {
		err := l.Space.Import(ctx, id, b)
		var full *kvcache.OutOfPagesError
		var swap *kvcache.OutOfSwapError
		switch {
		case err == nil:
			return true, nil
		case errors.As(err, &swap):
			return false, nil
		case errors.As(err, &full):
			if x.Evict(1) == 0 {
				return false, nil
			}
		default:
			return false, fmt.Errorf("prefix: %w", err)
		}
	}
}
