// Package s3 keeps pages of a cache in a bucket of a server that speaks the
// protocol of S3. It is a module of its own, so that the library does not bring
// the client along.
package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/minio/minio-go/v7"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
)

// Options are those of New.
type Options struct {
	Prefix string // of the names of all objects, as "cache/"
}

// Store is a tier.Store. The page of a key is the object Prefix + Key.Name() +
// ".page", in the format of package page. The server sees to it that an object is
// there whole or not at all.
type Store struct {
	client *minio.Client
	bucket string
	o      Options
	closed atomic.Bool
}

var _ tier.Store = (*Store)(nil)

const name = "s3"

// New is a Store in a bucket, which must be there.
func New(client *minio.Client, bucket string, o Options) *Store {
	return &Store{client: client, bucket: bucket, o: o}
}

func (s *Store) object(k page.Key) string { return s.o.Prefix + k.Name() + ".page" }

// enter is the start of each method.
func (s *Store) enter(ctx context.Context, op string, k page.Key) error {
	if s.closed.Load() {
		return tier.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return &tier.StoreError{Store: name, Op: op, Key: k, Err: err}
	}
	return nil
}

// judge gives an answer of the server its type.
func judge(op string, k page.Key, need int, err error) error {
	if err == nil {
		return nil
	}
	var answer minio.ErrorResponse
	switch {
	case !errors.As(err, &answer):
	case answer.Code == minio.NoSuchKey || answer.StatusCode == http.StatusNotFound && answer.Code != minio.NoSuchBucket:
		return tier.ErrNotFound
	case slices.Contains([]string{"EntityTooLarge", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded"}, answer.Code):
		return &tier.FullError{Store: name, Need: int64(need), Err: err}
	}
	return &tier.StoreError{Store: name, Op: op, Key: k, Err: err}
}

// Put is Store.Put. A bucket that is full is a *tier.FullError.
func (s *Store) Put(ctx context.Context, k page.Key, b []byte) error {
	if err := s.enter(ctx, "Put", k); err != nil {
		return err
	}
	if err := page.Check(b, k); err != nil {
		return err
	}
	_, err := s.client.PutObject(ctx, s.bucket, s.object(k), bytes.NewReader(b), int64(len(b)), minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return judge("Put", k, len(b), err)
}

// Get is Store.Get.
func (s *Store) Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error) {
	if err := s.enter(ctx, "Get", k); err != nil {
		return dst, err
	}
	b, err := s.read(ctx, k)
	if err != nil {
		return dst, judge("Get", k, 0, err)
	}
	if err := page.Check(b, k); err != nil {
		corrupt := &tier.CorruptError{Store: name, Key: k, Err: err}
		if err := s.Delete(ctx, k); err != nil {
			corrupt.Err = errors.Join(corrupt.Err, err) // it is there still, and found damaged again
		}
		return dst, corrupt
	}
	return append(dst, b...), nil
}

func (s *Store) read(ctx context.Context, k page.Key) ([]byte, error) {
	o, err := s.client.GetObject(ctx, s.bucket, s.object(k), minio.GetObjectOptions{})
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return io.ReadAll(o)
}

// Has is Store.Has.
func (s *Store) Has(ctx context.Context, k page.Key) (bool, error) {
	if err := s.enter(ctx, "Has", k); err != nil {
		return false, err
	}
	_, err := s.client.StatObject(ctx, s.bucket, s.object(k), minio.StatObjectOptions{})
	err = judge("Has", k, 0, err)
	if errors.Is(err, tier.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Delete is Store.Delete.
func (s *Store) Delete(ctx context.Context, k page.Key) error {
	if err := s.enter(ctx, "Delete", k); err != nil {
		return err
	}
	err := judge("Delete", k, 0, s.client.RemoveObject(ctx, s.bucket, s.object(k), minio.RemoveObjectOptions{}))
	if errors.Is(err, tier.ErrNotFound) {
		return nil
	}
	return err
}

// Close ends all use. Objects stay.
func (s *Store) Close() error {
	s.closed.Store(true)
	return nil
}
