// Package redis keeps pages of a cache on a server that speaks the protocol of
// Redis, such as Valkey. It is a module of its own, so that the library does not
// bring the client along.
package redis

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
)

// Options are those of New.
type Options struct {
	Prefix string        // of all keys; empty: "longctx:"
	TTL    time.Duration // after which the server lets a page go; 0: never
}

// Store is a tier.Store. The page of a key is the string Prefix + Key.Name(), in
// the format of package page.
type Store struct {
	client redis.UniversalClient
	o      Options
	closed atomic.Bool
}

var _ tier.Store = (*Store)(nil)

const name = "redis"

// New is a Store on the server of a client, which Close closes. The client's
// timeouts bound what a call can leave behind on a dead server when its context
// ends first. What the server evicts at its maxmemory is a page not found.
func New(client redis.UniversalClient, o Options) *Store {
	if o.Prefix == "" {
		o.Prefix = "longctx:"
	}
	return &Store{client: client, o: o}
}

// run calls f and returns when it does, or when ctx ends: the client looks at
// the deadline of a context but not at its cancellation. f must not use memory
// of the caller.
func (s *Store) run(ctx context.Context, op string, k page.Key, f func(name string) error) error {
	if s.closed.Load() {
		return tier.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return &tier.StoreError{Store: name, Op: op, Key: k, Err: err}
	}
	done := make(chan error, 1)
	go func() { done <- f(s.o.Prefix + k.Name()) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redis.Nil):
		return tier.ErrNotFound
	case errors.Is(err, redis.ErrClosed):
		return tier.ErrClosed
	}
	return &tier.StoreError{Store: name, Op: op, Key: k, Err: err}
}

// Put is Store.Put. A server that is out of memory is a *tier.FullError.
func (s *Store) Put(ctx context.Context, k page.Key, b []byte) error {
	if err := page.Check(b, k); err != nil {
		return err
	}
	b = bytes.Clone(b) // it may be on its way after ctx has ended
	err := s.run(ctx, "Put", k, func(name string) error { return s.client.Set(ctx, name, b, s.o.TTL).Err() })
	if err != nil && strings.Contains(err.Error(), "OOM ") {
		return &tier.FullError{Store: name, Need: int64(len(b)), Err: err}
	}
	return err
}

// Get is Store.Get.
func (s *Store) Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error) {
	got := make(chan []byte, 1)
	err := s.run(ctx, "Get", k, func(name string) error {
		b, err := s.client.Get(ctx, name).Bytes()
		got <- b
		return err
	})
	if err != nil {
		return dst, err
	}
	b := <-got
	if err := page.Check(b, k); err != nil {
		corrupt := &tier.CorruptError{Store: name, Key: k, Err: err}
		if err := s.Delete(ctx, k); err != nil {
			corrupt.Err = errors.Join(corrupt.Err, err) // it is there still, and found damaged again
		}
		return dst, corrupt
	}
	return append(dst, b...), nil
}

// Has is Store.Has.
func (s *Store) Has(ctx context.Context, k page.Key) (bool, error) {
	got := make(chan int64, 1)
	err := s.run(ctx, "Has", k, func(name string) error {
		n, err := s.client.Exists(ctx, name).Result()
		got <- n
		return err
	})
	if err != nil {
		return false, err
	}
	return <-got > 0, nil
}

// Delete is Store.Delete.
func (s *Store) Delete(ctx context.Context, k page.Key) error {
	return s.run(ctx, "Delete", k, func(name string) error { return s.client.Del(ctx, name).Err() })
}

// Close closes the client. Pages stay on the server.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.client.Close()
}
