//go:build tools

// Package tools pins the data store of the local cluster, so that go.sum covers it.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
)
