/* Statuses, errors and results. Part of kvlink.hpp. */

#ifndef KVLINK_RESULT_HPP
#define KVLINK_RESULT_HPP

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "../kvlink.h"

#ifdef KVLINK_EXCEPTIONS
#ifndef __cpp_exceptions
#error "KVLINK_EXCEPTIONS is defined, but the compiler's exceptions are off"
#endif
#include <stdexcept>
#endif

namespace kvlink {

/* A kvlink_error. A newer library may have values that are not listed: see error_class. */
enum class Status : std::int32_t {
    ok = KVLINK_OK,
    invalid_argument = KVLINK_E_INVALID_ARGUMENT,
    null_pointer = KVLINK_E_NULL_POINTER,
    struct_size = KVLINK_E_STRUCT_SIZE,
    unknown_enum = KVLINK_E_UNKNOWN_ENUM,
    bad_handle = KVLINK_E_BAD_HANDLE,
    invalid_layout = KVLINK_E_INVALID_LAYOUT,
    invalid_blocks = KVLINK_E_INVALID_BLOCKS,
    limit = KVLINK_E_LIMIT,
    buffer_too_small = KVLINK_E_BUFFER_TOO_SMALL,
    wrong_state = KVLINK_E_WRONG_STATE,
    invalid_ticket = KVLINK_E_INVALID_TICKET,
    duplicate = KVLINK_E_DUPLICATE,
    no_memory = KVLINK_E_NO_MEMORY,
    system = KVLINK_E_SYSTEM,
    permission = KVLINK_E_PERMISSION,
    transport_unavailable = KVLINK_E_TRANSPORT_UNAVAILABLE,
    address = KVLINK_E_ADDRESS,
    unreachable = KVLINK_E_UNREACHABLE,
    peer_dead = KVLINK_E_PEER_DEAD,
    incompatible = KVLINK_E_INCOMPATIBLE,
    version = KVLINK_E_VERSION,
    protocol = KVLINK_E_PROTOCOL,
    incarnation = KVLINK_E_INCARNATION,
    refused = KVLINK_E_REFUSED,
    cancelled = KVLINK_E_CANCELLED,
    deadline = KVLINK_E_DEADLINE,
    lease_expired = KVLINK_E_LEASE_EXPIRED,
    unknown_request = KVLINK_E_UNKNOWN_REQUEST,
    incomplete = KVLINK_E_INCOMPLETE,
    quarantined = KVLINK_E_QUARANTINED,
    backend = KVLINK_E_BACKEND,
    internal = KVLINK_E_INTERNAL,
    poisoned = KVLINK_E_POISONED,
};

/* What must be repaired after a failure. */
enum class ErrorClass { call, host, peer, transfer, backend, kvlink };

/* The class of any status but Status::ok, by its range: also of those that this header does not list. */
constexpr ErrorClass error_class(Status failure) noexcept
{
    const auto code = static_cast<std::int32_t>(failure);
    return code > -100   ? ErrorClass::call
           : code > -200 ? ErrorClass::host
           : code > -300 ? ErrorClass::peer
           : code > -400 ? ErrorClass::transfer
           : code > -500 ? ErrorClass::backend
                         : ErrorClass::kvlink;
}

/* A constant text: "lease expired". */
inline const char* status_text(Status status) noexcept
{
    return ::kvlink_status_text(static_cast<std::int32_t>(status));
}

/* Version of the library, "major.minor.patch". */
inline const char* version() noexcept { return ::kvlink_version(); }

/* Why something failed. */
class Error {
public:
    Error(Status status, std::string message) : status_(status), message_(std::move(message)) {}

    Status status() const noexcept { return status_; }
    ErrorClass error_class() const noexcept { return kvlink::error_class(status_); }

    /* The status in words and what was wrong: it names the thing and both values. */
    const std::string& message() const noexcept { return message_; }

private:
    Status status_;
    std::string message_;
};

#ifdef KVLINK_EXCEPTIONS
/* What Result::value() throws. */
class Exception : public std::runtime_error {
public:
    explicit Exception(Error error) : std::runtime_error(error.message()), error_(std::move(error)) {}

    const Error& error() const noexcept { return error_; }

    [[noreturn]] static void raise(const Error& error) { throw Exception(error); }

private:
    Error error_;
};
#else
class Exception; /* Result::value() needs KVLINK_EXCEPTIONS */
#endif

namespace detail {

/* The program used what is not there: continuing would be undefined. Not inline, so that compilers do not look for the error
 * in a result that has a value. */
[[noreturn, gnu::noinline, gnu::cold]] inline void misuse(const char* what, const char* text) noexcept
{
    std::fprintf(stderr, "kvlink: %s: %s\n", what, text);
    std::abort();
}

[[noreturn, gnu::noinline, gnu::cold]] inline void misuse(const Error& error) noexcept
{
    misuse("a result was used that is an error", error.message().c_str());
}

} // namespace detail

/* The value of a call, or why it failed.
 *
 * `*result`, `result->` and `error()` end the program if there is no such thing: ask first. On a temporary, `*` and value()
 * move the value out, so `for (auto& event : *agent.poll(0))` is safe. */
template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const noexcept { return state_.index() == 0; }
    explicit operator bool() const noexcept { return ok(); }

    T& operator*() & { return *checked(); }
    const T& operator*() const& { return *checked(); }
    T operator*() && { return std::move(*checked()); }
    T* operator->() { return checked(); }
    const T* operator->() const { return checked(); }

    const Error& error() const
    {
        const Error* error = std::get_if<1>(&state_);
        if (error == nullptr)
            detail::misuse("error() of a result", "it has a value");
        return *error;
    }

    /* The value; throws Exception if there is none. Only with KVLINK_EXCEPTIONS. */
    template <class E = Exception>
    T& value() &
    {
        return ok() ? **this : (E::raise(error()), **this);
    }
    template <class E = Exception>
    const T& value() const&
    {
        return ok() ? **this : (E::raise(error()), **this);
    }
    template <class E = Exception>
    T value() &&
    {
        if (!ok())
            E::raise(error());
        return *std::move(*this);
    }

private:
    T* checked()
    {
        return const_cast<T*>(std::as_const(*this).checked());
    }
    const T* checked() const
    {
        const T* value = std::get_if<0>(&state_);
        if (value == nullptr)
            detail::misuse(*std::get_if<1>(&state_));
        return value;
    }

    std::variant<T, Error> state_;
};

/* Success, or why it failed. */
template <>
class [[nodiscard]] Result<void> {
public:
    Result() noexcept = default;
    Result(Error error) : error_(std::move(error)) {}

    bool ok() const noexcept { return !error_; }
    explicit operator bool() const noexcept { return ok(); }

    const Error& error() const
    {
        if (!error_)
            detail::misuse("error() of a result", "it is a success");
        return *error_;
    }

    /* Throws Exception if it failed. Only with KVLINK_EXCEPTIONS. */
    template <class E = Exception>
    void value() const
    {
        if (error_)
            E::raise(*error_);
    }

private:
    std::optional<Error> error_;
};

namespace detail {

/* Calls `copy(buf, cap, &len)` until the buffer fits; the text can grow between two calls. `nul`: room for a NUL. */
template <class Copy>
kvlink_status_t copy_text(std::string& text, std::size_t nul, Copy copy)
{
    text.resize(256);
    for (;;) {
        std::size_t len = 0;
        const kvlink_status_t status = copy(text.data(), text.size(), &len);
        if (status == KVLINK_OK)
            text.resize(len);
        if (status != KVLINK_E_BUFFER_TOO_SMALL)
            return status;
        text.resize(len + nul);
    }
}

/* An error that C does not put into words. */
inline Error error(Status status, std::string_view what)
{
    return Error(status, std::string(status_text(status)).append(": ").append(what));
}

/* The error of the call that has just failed on this thread. */
inline Error last_error(kvlink_status_t status)
{
    std::string message;
    const auto copy = [](char* buf, std::size_t cap, std::size_t* len) { return ::kvlink_last_error(buf, cap, len); };
    if (copy_text(message, 1, copy) != KVLINK_OK)
        return error(static_cast<Status>(status), "the message could not be read");
    return Error(static_cast<Status>(status), std::move(message));
}

inline Result<void> result(kvlink_status_t status)
{
    if (status != KVLINK_OK)
        return last_error(status);
    return {};
}

/* A success with this value. */
template <class T>
Result<T> result(kvlink_status_t status, T value)
{
    if (status != KVLINK_OK)
        return last_error(status);
    return Result<T>(std::move(value));
}

template <class Copy>
Result<std::string> text(std::size_t nul, Copy copy)
{
    std::string text;
    const kvlink_status_t status = copy_text(text, nul, copy);
    return result(status, std::move(text));
}

/* Calls `copy(items, cap, &count)` until the vector fits. */
template <class T, class Copy>
Result<std::vector<T>> list(Copy copy)
{
    std::vector<T> items;
    for (;;) {
        std::size_t count = 0;
        const kvlink_status_t status = copy(items.data(), items.size(), &count);
        if (status == KVLINK_E_BUFFER_TOO_SMALL) {
            items.resize(count);
            continue;
        }
        if (status != KVLINK_OK)
            return last_error(status);
        items.resize(count);
        return items;
    }
}

} // namespace detail
} // namespace kvlink

#endif
